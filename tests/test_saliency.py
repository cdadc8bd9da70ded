"""The Fisher pass against a naive computation, and the masks that the script writes."""

import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import RATIO, picture_cell, read_table, run_script, sample, write_table

from data_process.saliency import (
    Plan,
    ablation_mask,
    batch_counts,
    batch_mean,
    blocks,
    certainty,
    difference_mask,
    fisher_pass,
    shares,
    warn,
)
from utils.checkpoint import read_json
from utils.cli import Problems
from utils.collate import Collator
from utils.families import FAMILIES, part_of_parameters
from utils.losses import token_nll
from utils.masks import Mask
from utils.mllmu import MLLMUBench
from utils.models import load_model
from utils.reading.weightless import empty_model
from utils.released import PAPER

PARTS = ("language", "vision", "both")


def naive(model, collator, samples, size) -> tuple[dict, int]:
    """Sums over batches of the squared gradient, one modality after the other."""
    sums = {n: torch.zeros(p.shape) for n, p in model.named_parameters()}
    groups = [[s for s in samples if s.picture], [s for s in samples if not s.picture]]
    batches = [g[i : i + size] for g in groups for i in range(0, len(g), size)]
    for batch in batches:
        model.zero_grad(set_to_none=True)
        token_nll(model, collator(batch)).mean().backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                sums[name] += p.grad**2
    model.zero_grad(set_to_none=True)
    return sums, len(batches)


@pytest.fixture
def setting(family, tiny, processors):
    model = load_model(str(tiny[family]))
    colours = ("red", "green", "blue", "white", "black")
    samples = [sample(f"Who is {c}?", f"It is {c}", picture_cell(32, 32, c), c) for c in colours]
    samples += [sample(f"Who is {c} by name?", f"{c}y", None, f"text {c}") for c in colours[:3]]
    return model, Collator(processors[family], FAMILIES[family]), samples


def passed(model, collator, plans, size, scale=1.0) -> dict[str, torch.Tensor]:
    """The sums of one fisher_pass over all parameters of the plans."""
    sums = {n: torch.zeros_like(p) for plan in plans for n, p in plan.parameters.items()}
    fisher_pass(model, collator, token_nll, plans, sums, dict.fromkeys(sums, scale), Accelerator(), size)
    return sums


@pytest.mark.parametrize("size", [2, 1], ids=["batch", "sample"])
def test_fisher_pass_is_the_naive_sum(setting, size):
    model, collator, samples = setting
    model.eval()
    expected, batches = naive(model, collator, samples, size)
    assert batches == {1: 8, 2: 5}[size]
    model.train()
    every = dict(model.named_parameters())
    plan = Plan("all", samples, every)
    sums = passed(model, collator, [plan], size, scale=0.5)
    assert set(batch_counts([plan], size).values()) == {batches}
    for name in every:
        torch.testing.assert_close(sums[name], expected[name] / 2, rtol=1e-4, atol=1e-12)
    assert sum(float(s.sum()) for s in sums.values()) > 0
    assert all(p.grad is None for p in model.parameters())
    assert not any(module.training for module in model.modules())


def test_plans_add_up_and_feed_only_their_parameters(setting):
    model, collator, samples = setting
    model.eval()
    pictures, texts = [s for s in samples if s.picture], [s for s in samples if not s.picture]
    of_pictures, n_pictures = naive(model, collator, pictures, 2)
    of_texts, n_texts = naive(model, collator, texts, 2)
    part, every = part_of_parameters(model), dict(model.named_parameters())
    language = {n: p for n, p in every.items() if part[n] == "language"}
    plans = [Plan("pictures", pictures, every), Plan("texts", texts, language)]
    sums, counts = passed(model, collator, plans, 2), batch_counts(plans, 2)
    for name in every:
        both = name in language
        torch.testing.assert_close(
            sums[name], of_pictures[name] + both * of_texts[name], rtol=1e-4, atol=1e-12
        )
        assert counts[name] == n_pictures + both * n_texts
    assert all(p.grad is None for p in model.parameters())


def test_a_pass_computes_the_gradients_of_its_block_alone(setting):
    """Each block's sums are those of all at once, and what lies outside needs no gradient. Where text alone
    reaches no weight of a block (vision, Llama-3.2-Vision's cross-attention), there is no backward."""
    model, collator, samples = setting
    every = dict(model.named_parameters())
    plan = Plan("all", samples, every)
    whole = passed(model, collator, [plan], 2)
    groups = blocks(every, 7)
    assert [n for group in groups for n in group] == list(every)
    for group in groups:
        sums = {n: torch.zeros_like(p) for n, p in group.items()}
        fisher_pass(model, collator, token_nll, [plan], sums, dict.fromkeys(sums, 1.0), Accelerator(), 2)
        assert {n for n, p in every.items() if p.requires_grad} == set(group)
        for name, total in sums.items():
            torch.testing.assert_close(total, whole[name], rtol=1e-4, atol=1e-12)


def test_blocks_are_of_about_the_same_size():
    sizes = {"embed": 400, "a": 100, "b": 100, "c": 100, "d": 100, "head": 400}
    parameters = {n: torch.nn.Parameter(torch.zeros(k)) for n, k in sizes.items()}
    names = lambda number: [list(group) for group in blocks(parameters, number)]
    assert names(1) == [list(sizes)]
    assert names(3) == [["embed"], ["a", "b", "c", "d"], ["head"]]
    assert names(100) == [[name] for name in sizes]


def test_hooks_are_gone_afterwards(setting):
    model, collator, samples = setting
    every = dict(model.named_parameters())
    passed(model, collator, [Plan("all", samples[:2], every)], 2)
    for p in model.parameters():
        p.requires_grad_(True)
    token_nll(model, collator(samples[:2])).mean().backward()
    assert all(p.grad is not None for n, p in every.items() if "language_model.norm" in n)


def test_what_a_process_takes():
    """Whole batches by turns; of a batch that is cut over four processes a share, or a sample for show."""
    batches = [["a", "b", "c", "d", "e", "f"], ["g", "h"], ["i"]]
    of = lambda rank, processes, cut: shares(
        batches, SimpleNamespace(process_index=rank, num_processes=processes, is_fsdp2=cut)
    )
    assert of(0, 2, False) == [(batches[0], True), (batches[2], True)]
    assert of(1, 2, False) == [(batches[1], True)]
    assert of(1, 4, True) == [(["b", "f"], True), (["h"], True), (["i"], False)]
    assert of(3, 4, True) == [(["d"], True), (["g"], False), (["i"], False)]


def test_the_mean_of_a_batch_that_is_cut():
    """Three processes hold 2, 1 and no terms that count: the average of their gradients is the mean's."""
    values = [torch.tensor([1.0, 4.0]), torch.tensor([10.0]), torch.tensor([7.0])]
    total = torch.tensor([15.0, 3.0], dtype=torch.float64)
    acc = SimpleNamespace(is_fsdp2=True, num_processes=3, reduce=lambda mine: total)
    parts = [batch_mean(v, v[0] != 7, acc) for v in values]
    assert [mean for _, mean in parts] == [5.0] * 3
    assert float(sum(loss for loss, _ in parts)) / 3 == pytest.approx(5.0)


# ---------------------------------------------------------------- the rule
def test_difference_mask_by_hand():
    """(f + ε) / (p + ε) ≥ γ as f − γp ≥ (γ − 1)ε; where neither side has a gradient it is not salient."""
    forget = torch.tensor([0.0, 2.0, 0.0, 3.1, 2.0, 6.1, 5.9])
    preserve = torch.tensor([0.0, 0.0, 2.0, 3.0, 4.0, 3.0, 3.0])
    of = lambda threshold: difference_mask(forget - threshold * preserve, threshold).tolist()
    assert of(1.0) == [False, True, False, True, False, True, True]
    assert of(2.0) == [False, True, False, False, False, True, False]
    assert of(0.5) == [False, True, False, True, False, True, True]
    assert of(0.4) == [False, True, False, True, True, True, True]
    # below ε = 1e-15: 0 / 4e-16 is (0 + ε) / 1.4ε, more than a half; 5/2 of ε is more than 2, 2/1 is not
    tiny = lambda f, p, threshold: difference_mask(torch.tensor([f - threshold * p]), threshold).item()
    assert tiny(0.0, 4e-16, 0.5) and not tiny(0.0, 1.5e-15, 0.5)
    assert tiny(4e-15, 1e-15, 2.0) and not tiny(1e-15, 1e-16, 2.0)


def test_the_difference_decides_as_two_sums():
    """Squares over twenty decades, summed batch by batch in one fp32 buffer, against the ratio of two sums in
    fp64."""
    generator = torch.Generator().manual_seed(0)
    n, batches = 200_000, (5, 9)
    draw = lambda k: (torch.randn(k, n, generator=generator) * scale).square()
    scale = 10 ** (-10 * torch.rand(n, generator=generator))
    forget, preserve = draw(batches[0]), draw(batches[1])
    forget[:, :1000], preserve[:, 500:1500] = 0, 0
    for threshold in (0.5, 1.0, 4.0):
        one = torch.zeros(n)
        for square in forget:
            one.add_(square, alpha=1 / batches[0])
        for square in preserve:
            one.add_(square, alpha=-threshold / batches[1])
        f, p = forget.double().mean(0), preserve.double().mean(0)
        ratio = ((f + 1e-15) / (p + 1e-15) >= threshold) & ((f > 0) | (p > 0))
        mask = difference_mask(one, threshold)
        near = (f - threshold * p).abs() <= 1e-6 * f + 1e-28
        assert torch.equal(mask[~near], ratio[~near]) and int(near.sum()) < 1e-4 * n + 500
        assert not mask[500:1000].any()


# ---------------------------------------------------------------- the files
@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
def test_masks_name_the_parameters_of_their_part(kind, masks, tiny):
    empty = empty_model(str(tiny[kind]))
    part, shapes = part_of_parameters(empty), {n: list(p.shape) for n, p in empty.named_parameters()}
    found = {p: Mask.load(str(masks(kind) / f"mllmu_{p}_mask.pt"), kind) for p in PARTS}
    for wanted in ("language", "vision"):
        assert set(found[wanted].bits) == {n for n in part if part[n] == wanted}
    assert set(found["both"].bits) == set(found["language"].bits) | set(found["vision"].bits) == set(part)
    for name in part:
        assert torch.equal(found["both"].bits[name], found[part[name]].bits[name])
    for wanted, mask in found.items():
        mask.check(shapes)
        salient, named = mask.count()
        assert 0.02 < salient / named < 0.98, wanted
        about = mask.about
        assert (about["part"], about["fisher"], about["threshold"]) == (wanted, "batch", 1.0)
        assert about["model"]["name"] == str(tiny[kind]) and set(about["data"]) == {
            "forget",
            "retain",
            "text",
        }
        assert about["salient"] == {n: int(mask.of(n).sum()) for n in mask.bits}
    assert sorted(p.name for p in masks(kind).iterdir()) == [
        "coverage.json", "coverage.png", "mllmu_both_mask.pt", "mllmu_language_mask.pt",
        "mllmu_vision_mask.pt", "run.json",
    ]  # fmt: skip


def test_the_written_mask_is_the_naive_one(masks, tiny, nano, processors):
    model = load_model(str(tiny["llava"])).eval()
    collator, problems = Collator(processors["llava"], FAMILIES["llava"]), Problems()
    bench = MLLMUBench(str(nano / "MLLMMU-Bench"), RATIO, problems)
    f, nf = naive(model, collator, bench.forget(), 4)
    r, nr = naive(model, collator, bench.retain(), 4)
    t, nt = naive(model, collator, bench.text_knowledge(), 4)
    assert not problems.lines and nt > 5
    written, part = Mask.load(str(masks("llava") / "mllmu_both_mask.pt"), "llava"), part_of_parameters(model)
    report = read_json(masks("llava") / "coverage.json")
    differ = total = 0
    sums = {"vision": [0.0, 0.0], "language": [0.0, 0.0]}
    for name in part:
        p = (r[name] + t[name]) / (nr + nt) if part[name] == "language" else r[name] / nr
        expected = ((f[name] / nf + 1e-15) / (p + 1e-15) >= 1) & ((f[name] > 0) | (p > 0))
        differ += int((expected != written.of(name)).sum())
        total += expected.numel()
        for k, saliency in enumerate((f[name] / nf, p)):
            sums[part[name]][k] += float(saliency.double().sum())
    for wanted, found in sums.items():
        means = [
            report[wanted]["all"][key] * report[wanted]["all"]["weights"] for key in ("forget", "preserve")
        ]
        assert means == pytest.approx(found, rel=1e-3)
    assert differ <= 3 < total * 1e-4, "a key's bias may: its gradient is rounding alone"
    # a word that neither people's answers nor questions hold has no gradient: not salient
    unused = "model.language_model.embed_tokens.weight"
    assert not written.of(unused)[(f[unused].sum(1) == 0) & (r[unused] + t[unused]).sum(1).eq(0)].any()


def test_coverage_counts_the_bits(masks):
    import json

    report = json.loads((masks("llava") / "coverage.json").read_text())
    for part in ("language", "vision"):
        mask = Mask.load(str(masks("llava") / f"mllmu_{part}_mask.pt"), "llava")
        groups = report[part]
        salient, named = mask.count()
        assert (groups["all"]["salient"], groups["all"]["weights"]) == (salient, named)
        rest = [entry for group, entry in groups.items() if group != "all"]
        assert sum(e["salient"] for e in rest) == salient and sum(e["weights"] for e in rest) == named
        assert all(
            e["share"] == pytest.approx(e["salient"] / e["weights"], abs=1e-6) for e in groups.values()
        )
        layers = [group for group in groups if group.rpartition(".")[2].isdigit()]
        assert len(layers) == 2
        for group in layers:
            inside = [n for n in mask.bits if n.startswith(f"model.{group}.")]
            assert groups[group]["salient"] == sum(int(mask.of(n).sum()) for n in inside), group
    assert "language_model.layers.1" in report["language"]


def test_same_bits_again_and_text_only_matters_to_language(masks, tiny, nano, tmp_path):
    shutil.copytree(nano, tmp_path / "data")
    full = tmp_path / "data" / "MLLMU-Bench" / "Full_Set"
    rows = read_table(full)
    for row in rows:
        for item in row["Classification_Task"]["Pure_Text_Questions"]:
            item["Question"] = "Quite another question"
            item["Options"] = {letter: "elsewhere " + letter for letter in "ABCD"}
    write_table(full, rows, like=nano / "MLLMU-Bench" / "Full_Set")
    made = {}
    for name, data in (("again", nano), ("other", tmp_path / "data")):
        run_script(
            "data_process/MLLMU_gen_mask.py", "--model_id", tiny["llava"], "--data_split_dir",
            data / "MLLMMU-Bench", "--forget_split_ratio", RATIO, "--save_dir", tmp_path / name,
        )  # fmt: skip
        made[name] = {p: Mask.load(str(tmp_path / name / f"mllmu_{p}_mask.pt"), "llava") for p in PARTS}
    first = {p: Mask.load(str(masks("llava") / f"mllmu_{p}_mask.pt"), "llava") for p in PARTS}
    equal = lambda a, b: all(torch.equal(a.bits[n], b.bits[n]) for n in a.bits)
    assert all(equal(first[p], made["again"][p]) for p in PARTS)
    assert equal(first["vision"], made["other"]["vision"])
    assert not equal(first["language"], made["other"]["language"])
    assert first["vision"].about["data"]["text"] != made["other"]["vision"].about["data"]["text"]


def test_flags_of_the_mask_script(tiny, nano, masks, tmp_path):
    """A higher threshold only takes bits away; blocks change nothing; per-sample Fisher is another mask, and
    so is one of log-odds, which sees the same answers as sure."""
    run = lambda name, *flags: run_script(
        "data_process/MLLMU_gen_mask.py", "--model_id", tiny["llava"], "--data_split_dir",
        nano / "MLLMMU-Bench", "--forget_ratio", RATIO, "--save_dir", tmp_path / name, *flags,
    )  # fmt: skip
    load = lambda folder: Mask.load(str(folder / "mllmu_both_mask.pt"), "llava")
    run("high", "--threshold", 4)
    run("blocks", "--blocks", 3)
    run("log_odds", "--saliency", "log_odds")
    run("sample", "--fisher", "sample", "--gradient_checkpointing")
    first, high, per_sample = load(masks("llava")), load(tmp_path / "high"), load(tmp_path / "sample")
    in_blocks = load(tmp_path / "blocks")
    assert all(torch.equal(first.bits[n], in_blocks.bits[n]) for n in first.bits)
    assert first.about == in_blocks.about
    assert all(not (high.bits[n] & ~first.bits[n]).any() for n in first.bits)
    assert 0 < high.count()[0] < first.count()[0]
    assert any(not torch.equal(first.bits[n], per_sample.bits[n]) for n in first.bits)
    assert per_sample.about["fisher"] == "sample"
    log_odds = load(tmp_path / "log_odds")
    assert any(not torch.equal(first.bits[n], log_odds.bits[n]) for n in first.bits)
    assert (first.about["saliency"], log_odds.about["saliency"]) == ("ce", "log_odds")
    answers = [
        read_json(folder / "run.json")["answers"] for folder in (masks("llava"), tmp_path / "log_odds")
    ]
    assert answers[0] == pytest.approx(answers[1], rel=1e-3)
    assert answers[0]["tokens"] > 30 and 0 < answers[0]["median_p"] < 0.1 and answers[0]["above"] == 0


def test_gradient_checkpointing_works_in_the_pass(tiny, processors, monkeypatch):
    """Checkpointing that is switched on must recompute layers in backward, also in eval mode, or it saves
    no memory."""
    from data_process import saliency

    seen = {}

    def watched(model, *args, **kwargs):
        calls = [0]
        layer = model.get_submodule("model.language_model.layers.0.mlp")
        handle = layer.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
        out = fisher_pass(model, *args, **kwargs)
        handle.remove()
        seen.setdefault("calls", []).append(calls[0])
        return out

    monkeypatch.setattr(saliency, "fisher_pass", watched)
    monkeypatch.setattr(saliency, "write_masks", lambda *a: {})
    for on in (False, True):
        args = SimpleNamespace(
            mask_kind="saliency",
            vanilla_dir=None, model_id=str(tiny["llava"]), dtype="fp32", attn="sdpa",
            gradient_checkpointing=on,
            blocks=1, saliency="ce", ans_only=True, batch_size=2, fisher="batch", threshold=1.0,
            save_dir="x", seed=0, released=PAPER, defaults={}, processor=processors["llava"],
        )  # fmt: skip
        one = [sample(picture=picture_cell())]
        saliency.make_masks(args, {"forget": one, "retain": one, "text": [sample()]}, "mllmu")
    plain, checkpointed = seen["calls"][:2], seen["calls"][2:]
    assert checkpointed == [2 * n for n in plain]


def test_a_loss_that_is_not_finite_writes_no_mask(tiny, nano, tmp_path, monkeypatch):
    from data_process import saliency

    monkeypatch.setattr(saliency, "token_nll", lambda model, batch: token_nll(model, batch) * math.nan)
    with pytest.raises(SystemExit, match="nan"):
        run_script(
            "data_process/MLLMU_gen_mask.py", "--model_id", tiny["llava"], "--data_split_dir",
            nano / "MLLMMU-Bench", "--forget_ratio", RATIO, "--save_dir", tmp_path / "m",
        )  # fmt: skip
    assert not (tmp_path / "m").exists()


# ---------------------------------------------------------------- what a mask is worth
def test_answers_that_are_certain_and_parts_that_are_empty_are_told(capsys):
    """p of 0.999, 0.995 and 0.5, from −log p and from log-odds."""
    p = torch.tensor([0.999, 0.5, 0.995])
    answers = certainty("ce", [-p[:2].log(), -p[2:].log()], Accelerator())
    assert answers == {"tokens": 3, "median_p": 0.995, "above": pytest.approx(2 / 3, abs=1e-4)}
    assert certainty("log_odds", [torch.logit(p)], Accelerator()) == answers
    assert certainty("fisher", [p], Accelerator()) is None
    report = {"language": {"all": {"share": 0.004}}, "vision": {"all": {"share": 0.3}}}
    warn("ce", answers, report)
    certain, empty = capsys.readouterr().out.splitlines()
    assert "p above 0.9950" in certain and "--saliency log_odds" in certain
    assert "0.40 % of the language part" in empty and "--saliency log_odds" in empty
    warn("log_odds", answers, report)
    assert "lower --threshold" in (told := capsys.readouterr().out) and "log_odds" not in told
    warn("ce", answers | {"median_p": 0.98}, {"vision": report["vision"]})
    assert not capsys.readouterr().out


# ---------------------------------------------------------------- ablations
@pytest.mark.parametrize("kind", ["topk", "random"])
def test_an_ablation_mask_has_the_same_sparsity(kind, nano, tiny, masks, tmp_path):
    """As many salient weights in every parameter as the saliency mask has, but other ones."""
    run_script(
        "data_process/MLLMU_gen_mask.py", "--model_id", tiny["llava"], "--data_split_dir",
        nano / "MLLMMU-Bench", "--forget_ratio", RATIO, "--save_dir", tmp_path / kind, "--mask_kind", kind,
    )  # fmt: skip
    ours = Mask.load(str(masks("llava") / "mllmu_both_mask.pt"), "llava")
    other = Mask.load(str(tmp_path / kind / "mllmu_both_mask.pt"), "llava")
    assert (ours.about["kind"], other.about["kind"]) == ("saliency", kind)
    assert ours.about["salient"] == other.about["salient"]
    assert any(not torch.equal(ours.bits[n], other.bits[n]) for n in ours.bits)


def test_topk_takes_the_largest_and_random_follows_the_seed():
    forget = torch.tensor([[0.1, 5.0], [3.0, 0.2]])
    like = torch.tensor([[True, True], [False, False]])
    assert ablation_mask("topk", forget, like, "0/w").tolist() == [[False, True], [True, False]]
    big = torch.zeros(1000, dtype=torch.bool)
    big[:100] = True
    first, again, other = (ablation_mask("random", big, big, seed) for seed in ("0/w", "0/w", "1/w"))
    assert torch.equal(first, again) and not torch.equal(first, other) and int(first.sum()) == 100

"""The switches for numbers as released: what each one changes, and that it changes nothing else."""

import json
import math
import shutil
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import (
    PICTURE_TOKENS,
    RATIO,
    ROOT,
    edited,
    jsonl,
    load_script,
    picture_cell,
    run_script,
    sample,
    weights,
)
from test_methods import NLL, TwoTokens, gradient, two_tokens
from test_scripts import snapshot, trainer_of

from utils import cli, families, flags, models, released
from utils.collate import IGNORE, Batch, Collator
from utils.data import repeat_text
from utils.losses import token_nll
from utils.masks import Mask
from utils.mllmu import MLLMUBench
from utils.reference import AnswerStates
from utils.released import FrozenModel, Released, retain_loss_everywhere, token_mean_loss


def refused(script, argv, capsys) -> list[str]:
    with pytest.raises(SystemExit) as end:
        run_script(script, *argv)
    assert end.value.code == 2
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]


MASK_SCRIPTS = ROOT.glob("data_process/*_gen_mask.py")
SCRIPTS = sorted(p.relative_to(ROOT) for p in (*ROOT.glob("*_*.py"), *MASK_SCRIPTS))
SWITCHES = {f.name: f for f in fields(Released)}


def flags_of(script, monkeypatch) -> list[tuple[str, list]]:
    """(title, flags) of each group of the script's help, in order."""
    caught = []
    monkeypatch.setattr(cli, "parse", caught.append)
    load_script(script).parse_args()
    groups = [(g.title, [a for a in g._group_actions if a.dest != "help"]) for g in caught[0]._action_groups]
    return [(title, actions) for title, actions in groups if actions]


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_help_shows_the_method_first_and_the_switches_last(script, monkeypatch):
    """At most 25 flags come before the last group, and a switch's default is the paper's method."""
    *groups, (title, last) = flags_of(script, monkeypatch)
    before = [action.dest for _, actions in groups for action in actions]
    assert title.startswith("as released") and len(before) <= 25
    assert not set(before) & set(SWITCHES) and {a.dest for a in last} & set(SWITCHES)
    titles = [title for title, _ in groups]
    assert titles.index("model") <= 1, "the method's own flags, the group without a title, come first"
    for action in (a for a in last if a.dest in SWITCHES):
        default = SWITCHES[action.dest].default
        assert action.default == default and action.help.endswith(f"default {default}")


def test_every_switch_is_some_scripts_and_documented(monkeypatch):
    groups = [group for script in SCRIPTS for group in flags_of(script, monkeypatch)]
    assert set(SWITCHES) <= {action.dest for _, actions in groups for action in actions}
    table = (ROOT / "docs" / "as_released.md").read_text(encoding="utf-8")
    for name, switch in SWITCHES.items():
        assert f"`--{name} {switch.metadata['values'][1]}" in table, name


def test_the_set_is_whole_whatever_a_script_declares(monkeypatch):
    p = cli.parser("")
    flags.add_model_args(p)
    flags.add_released_train_args(p, "clip")
    args = cli.parse(p, ["--model_id", "m", "--clip", "before_mask"])
    assert args.released == Released(clip="before_mask")
    assert "clip" in cli.settings(args) and "unlisted" not in cli.settings(args)


# ---------------------------------------------------------------- labels
@pytest.fixture
def rows():
    questions = ("Who is this?", "What is the name of the person, and where was she born?")
    return [sample(q, a, picture_cell(), a) for q, a in zip(questions, ("Ann of Oslo", "Bob"))]


def test_loss_tokens_all(family, processors, rows):
    """Every token that is not padding; but Llama-3.2-Vision's head has no row for its picture token."""
    of = families.FAMILIES[family]
    batch = Collator(processors[family], of, loss_tokens="all")(rows)
    ids, here = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    pictures = torch.isin(
        ids, torch.tensor(processors[family].tokenizer.convert_tokens_to_ids(PICTURE_TOKENS[family]))
    )
    assert pictures.any() and not here.all()
    expected = here & ~pictures if family == "mllama" else here
    assert torch.equal(batch.labels, ids.masked_fill(~expected, IGNORE))


def test_every_label_of_loss_tokens_all_can_be_predicted(family, tiny, processors, rows):
    model = models.load_model(str(tiny[family]))
    batch = Collator(processors[family], families.FAMILIES[family], loss_tokens="all")(rows)
    assert token_nll(model, batch).isfinite().all()


def test_answer_tokens_skip_first(family, processors, rows):
    """Exactly the first of an answer's tokens loses its label."""
    of = families.FAMILIES[family]
    plain = Collator(processors[family], of)(rows)
    skipped = Collator(processors[family], of, answer_tokens="skip_first")(rows)
    for a, b in zip(plain.labels, skipped.labels):
        first = (a != IGNORE).nonzero()[0].item()
        a[first] = IGNORE
        assert torch.equal(a, b) and (b != IGNORE).any()


def test_labels_in_a_run(train_args, tmp_path, capsys):
    """Terms per step are labelled tokens; the first two switches do not go together."""
    terms, samples = {}, [8, 8, 6, 8]  # in the shuffled order, six in the last batch of the table
    flags = {"plain": {}, "all": {"loss_tokens": "all"}, "skip": {"answer_tokens": "skip_first"}}
    flags["drop"] = {"answer_end": "drop"}
    for name, changes in flags.items():
        run_script("MLLMU_GA.py", *train_args(save_dir=tmp_path / name, lr=1e-6, **changes))
        terms[name] = [line["terms"] for line in jsonl(tmp_path / name / "log.jsonl")]
    assert [a - b for a, b in zip(terms["plain"], terms["skip"])] == samples
    assert [a - b for a, b in zip(terms["plain"], terms["drop"])] == samples
    assert all(a > 3 * b for a, b in zip(terms["all"], terms["plain"]))
    assert json.loads((tmp_path / "all" / "run.json").read_text())["arguments"]["loss_tokens"] == "all"
    for other in ({"loss_tokens": "all"}, {"ans_only": False}):
        (said,) = refused("MLLMU_GA.py", train_args(answer_tokens="skip_first", **other), capsys)
        assert said.startswith("error: --answer_tokens: ")


@pytest.mark.parametrize("moments", ["bf16", "8bit"])
def test_rounding_nearest_has_moments_of_its_own(moments, train_args, capsys):
    argv = train_args(rounding="nearest", moments=moments, dtype="bf16")
    (said,) = refused("MLLMU_GA.py", argv, capsys)
    assert said.startswith("error: --moments: ")


# ---------------------------------------------------------------- schedule and data
def test_schedule_every_epoch(train_args, tmp_path):
    """Eight steps in two epochs: linear decay takes one eighth after four steps, not after each."""
    rates = {}
    for every in ("step", "epoch"):
        folder = tmp_path / every
        run_script("MLLMU_GA.py", *train_args(save_dir=folder, num_epochs=2, schedule_every=every))
        rates[every] = [line["lr"] for line in jsonl(folder / "log.jsonl")]
    assert rates["step"] == pytest.approx([1e-3 * (8 - k) / 8 for k in range(8)])
    assert rates["epoch"] == pytest.approx([1e-3] * 4 + [1e-3 * 7 / 8] * 4)


def test_schedule_every_epoch_goes_on_after_resume(train_args, tmp_path):
    from test_training import stop_at

    argv = train_args(num_epochs=3, schedule_every="epoch", save_steps=5)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 7)
        run_script("MLLMU_GA.py", *argv)
    run_script("MLLMU_GA.py", *argv, "--resume")
    rates = [line["lr"] for line in jsonl(tmp_path / "run" / "log.jsonl")]
    assert rates == pytest.approx([1e-3 * (12 - k // 4) / 12 for k in range(12)])


def test_text_questions_twice(train_args, tmp_path, nano):
    pictures, texts = [sample(picture=picture_cell(), id="p")], [sample(id="t1"), sample(id="t2")]
    assert repeat_text(pictures + texts, "once") == pictures + texts
    assert repeat_text(pictures + texts, "twice") == pictures + texts + texts
    counts = {}
    for times in ("once", "twice"):
        argv = train_args(
            data_split_dir=nano / "MLLMU-Bench",
            text_questions=times,
            batch_size=64,
            save_dir=tmp_path / times,
        )
        run_script("MLLMU_finetune.py", *argv)
        counts[times] = json.loads((tmp_path / times / "run.json").read_text())["data"]["everybody"][
            "samples"
        ]
    from utils.cli import Problems

    data = MLLMUBench(str(nano / "MLLMU-Bench"), RATIO, Problems()).finetune()
    written = sum(s.picture is None for s in data)
    assert written > 0 and counts == {"once": len(data), "twice": len(data) + written}


# ---------------------------------------------------------------- NPO and KL_Min
def test_npo_token_mean_by_hand():
    """log p = −log(16/3) over two tokens, log p_ref = −2: the mean differs by (2 − log(16/3)) / 2."""
    reference = SimpleNamespace(of=lambda batch: torch.tensor([-2.0]))
    loss = token_mean_loss(TwoTokens(), two_tokens(), reference, beta=0.4)
    difference = (2 - math.log(16 / 3)) / 2
    assert loss.tolist() == pytest.approx([5 * math.log(1 + math.exp(0.4 * difference))])
    # two samples, of two and of one token: the mean is over three tokens, not over two answers
    two = two_tokens()
    ids = torch.cat([two.inputs["input_ids"]] * 2)
    batch = Batch({"input_ids": ids}, torch.tensor([[IGNORE, 1, 1], [IGNORE, 1, IGNORE]]), ["a", "b"])
    reference = SimpleNamespace(of=lambda batch: torch.tensor([-2.0, -1.0]))
    loss = token_mean_loss(TwoTokens(), batch, reference, beta=0.4)
    difference = (3 - sum(NLL) - NLL[0]) / 3
    assert loss.tolist() == pytest.approx([5 * math.log(1 + math.exp(0.4 * difference))])


def test_npo_loss_in_a_run(train_args, tmp_path):
    """One term per batch in place of one per sample; before the first step both are (2/β)·log 2."""
    for kind, terms in (("sequence", [8, 8, 6, 8]), ("token_mean", [1, 1, 1, 1])):
        folder = tmp_path / kind
        run_script("MLLMU_NPO.py", *train_args(save_dir=folder, npo_loss=kind, lora_dropout=0))
        log = jsonl(folder / "log.jsonl")
        assert [line["terms"] for line in log] == terms
        assert log[0]["loss"] == pytest.approx(5 * math.log(2), rel=1e-4)
    a, b = (weights(tmp_path / kind) for kind in ("sequence", "token_mean"))
    assert any(not torch.equal(a[n], b[n]) for n in a)


def test_kl_at_all_positions(family, tiny, processors, nano):
    """Against torch's own batchmean over (B, T, V), in a batch with padding and pictures."""
    args = SimpleNamespace(
        model_id=str(tiny[family]),
        dtype="fp32",
        attn="sdpa",
        batch_size=3,
        ans_only=True,
        released=Released(),
    )
    samples = MLLMUBench(str(nano / "MLLMMU-Bench"), RATIO, cli.Problems()).forget()[:4]
    batch = Collator(processors[family], families.FAMILIES[family])(samples)
    assert not batch.inputs["attention_mask"].all()
    script, model = load_script("MLLMU_KL_Min.py"), models.load_model(args.model_id).eval()
    vanilla = FrozenModel(args, args.model_id, samples)
    start = retain_loss_everywhere(model, batch, vanilla)
    torch.testing.assert_close(start, token_nll(model, batch), atol=1e-5, rtol=0)
    with torch.no_grad():
        before = model(**batch.inputs).logits
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        now = model(**batch.inputs, labels=batch.labels)
    kl = F.kl_div(now.logits.log_softmax(-1), before.softmax(-1), reduction="batchmean")
    terms = retain_loss_everywhere(model, batch, vanilla)
    torch.testing.assert_close(terms.mean(), now.loss + kl, rtol=1e-4, atol=1e-4)
    at_answers = script.retain_loss(model, batch, AnswerStates(args, args.model_id, samples))
    assert kl > 10 * (at_answers.mean() - now.loss) > 0
    assert gradient(terms, model).isfinite().all()


def test_kl_positions_in_a_run(train_args, tmp_path):
    """The first retain step starts at the vanilla model: no divergence, the same loss. Then they part."""
    logs = []
    for where in ("answer", "all"):
        folder = tmp_path / where
        argv = train_args(save_dir=folder, kl_positions=where, forget_alpha=0, lora=False, batch_size=30)
        run_script("MLLMU_KL_Min.py", *argv)
        logs.append([line["loss"] for line in jsonl(folder / "log.jsonl")])
    assert logs[0][0] == pytest.approx(logs[1][0], rel=1e-4)
    assert logs[1][1] > logs[0][1] + 1e-3


# ---------------------------------------------------------------- the masked step
@pytest.fixture
def stepped(train_args, masks, monkeypatch):
    """stepped(phases, part, **flags) -> trainer, its mask, and the weights before and after the last step."""

    def run(phases: str, part: str = "language", **flags):
        path = masks("llava") / f"mllmu_{part}_mask.pt"
        trainer, of = trainer_of(train_args(grad_mask_path=path, **flags), monkeypatch)
        collate = Collator(trainer.processor, trainer.family)
        for number, letter in enumerate(phases):
            phase = of[{"f": "forget", "r": "retain"}[letter]]
            before = snapshot(trainer)
            record = trainer._step(phase, [(collate(phase.samples[:8]), True)], number + 1)
        return SimpleNamespace(
            mask=of["forget"].mask, before=before, after=snapshot(trainer), norm=record["grad_norm"]
        )

    return run


PROPORTIONAL = {"adam_eps": 1e3, "lr": 1e3}  # a step of AdamW is then proportional to the gradient


def way(step, names=None) -> float:
    """How far the weights went, as a Euclidean distance."""
    names = names or step.before
    return sum(float(((step.after[n] - step.before[n]).double() ** 2).sum()) for n in names) ** 0.5


def test_clip_before_mask(stepped):
    """Clipped to 1e-3 as a whole, then masked: what is left is shorter by the mask's share of the norm."""
    whole = stepped("f", clip="before_mask", max_grad_norm=0, **PROPORTIONAL)
    after = stepped("f", max_grad_norm=1e-3, **PROPORTIONAL)
    before = stepped("f", max_grad_norm=1e-3, clip="before_mask", **PROPORTIONAL)
    assert after.norm < before.norm == pytest.approx(whole.norm)
    assert way(after) == pytest.approx(1e-3, rel=0.1)
    assert way(before) == pytest.approx(1e-3 * after.norm / before.norm, rel=0.1)
    for step in (after, before):
        for name, p in step.after.items():
            inside = step.mask.of(name) if name in step.mask.bits else torch.zeros_like(p, dtype=torch.bool)
            assert torch.equal(p[~inside], step.before[name][~inside])


def test_clip_steps_forget(stepped):
    flags = {"max_grad_norm": 1e-3, **PROPORTIONAL}
    both, only = (stepped("r", clip_steps=which, **flags) for which in ("all", "forget"))
    assert way(both) == pytest.approx(1e-3, rel=0.1)
    assert way(only) == pytest.approx(only.norm, rel=0.1) and only.norm > 2e-3
    forget = stepped("f", clip_steps="forget", **flags)
    assert way(forget) == pytest.approx(1e-3, rel=0.1)


def moved(step) -> set[str]:
    return {n for n in step.before if not torch.equal(step.before[n], step.after[n])}


def test_mask_names_released(stepped):
    """Embeddings, norms and head drop out of the mask and so out of the forget step."""
    every, some = stepped("f"), stepped("f", mask_names="released")
    kept = {n for n in every.mask.bits if any(word in n for word in released.MASK_NAMES)}
    assert set(some.mask.bits) == kept and moved(some) == moved(every) & kept
    dropped = moved(every) - moved(some)
    assert {"lm_head.weight", "model.language_model.embed_tokens.weight"} <= dropped
    assert any("norm" in n for n in dropped)
    assert all(torch.equal(some.mask.bits[n], every.mask.bits[n]) for n in kept)


def test_mask_names_released_may_leave_nothing(train_args, masks, tmp_path, capsys):
    mask = Mask.load(str(masks("llava") / "mllmu_language_mask.pt"), "llava")
    Mask({"lm_head.weight": mask.bits["lm_head.weight"]}, mask.shapes).save(tmp_path / "head.pt")
    argv = train_args(grad_mask_path=tmp_path / "head.pt", mask_names="released")
    (said,) = refused("MLLMU_manifold.py", argv, capsys)
    assert "--grad_mask_path" in said and "lets no weight change" in said


def test_unlisted_train(stepped, capsys):
    """With a language mask the vision part takes the step that it takes without any mask; the rest is as
    before."""
    flags = {"max_grad_norm": 0, "weight_decay": 0.1}
    freeze, train = stepped("f", **flags), stepped("f", unlisted="train", **flags)
    assert "as released: also the" in capsys.readouterr().out
    free = stepped("f", part="vision", unlisted="train", **flags)  # there the language part is unlisted
    for name in freeze.before:
        if name in freeze.mask.bits:
            assert torch.equal(train.after[name], freeze.after[name])
        else:
            assert torch.equal(freeze.after[name], freeze.before[name])
    unlisted = {n for n in train.before if n not in train.mask.bits}
    assert len(moved(train) & unlisted) > 10
    for name in unlisted & set(free.mask.bits):  # the unmasked step, seen through the other mask
        inside = free.mask.of(name)
        assert torch.equal(train.after[name][inside], free.after[name][inside])
    for name in set(train.mask.bits):
        inside = train.mask.of(name)
        assert torch.equal(train.after[name][inside], free.after[name][inside])


def test_masked_weights_drift(stepped):
    """A retain step gives every weight momentum. In the forget step that follows, the momentum, decayed once,
    moves the weights outside the mask as well; without a step before there is none."""
    flags = {"max_grad_norm": 0, "lr": 1e-3, "adam_eps": 1e-15, "part": "both"}
    keep, drift = stepped("rf", **flags), stepped("rf", masked_weights="drift", **flags)
    outside = inside = 0
    for name, old in keep.before.items():
        free = keep.mask.of(name)
        assert torch.equal(keep.after[name][~free], old[~free])
        assert torch.equal(keep.after[name][free], drift.after[name][free])
        # g and then 0: m = 0.9·0.1·g / (1 − 0.9²), v = 0.999·0.001·g² / (1 − 0.999²)
        step = (drift.after[name] - old)[~free].abs()
        size = 1e-3 * (0.09 / 0.19) / (0.999e-3 / 1.999e-3) ** 0.5
        gone = step[step > 0.5 * size]
        torch.testing.assert_close(gone, torch.full_like(gone, size), rtol=0.01, atol=0)
        outside, inside = outside + len(gone), inside + int((~free).sum())
    assert outside > 0.5 * inside
    fresh = stepped("f", masked_weights="drift", **flags)
    for name, old in fresh.before.items():
        assert torch.equal(fresh.after[name][~fresh.mask.of(name)], old[~fresh.mask.of(name)])


# ---------------------------------------------------------------- masks
def test_the_ratio_in_sixteen_bits_by_hand():
    """fp16: ε is 0, 0/0 is NaN and x/0 infinite. bf16 knows 1e-15: 0/0 becomes 1."""
    forget = torch.tensor([0.0, 1e-4, 0.0, 2e-4, 1e-4, 1e-9])
    preserve = torch.tensor([0.0, 0.0, 1e-4, 1e-4, 2e-4, 1e-8])
    of = lambda dtype: released.ratio_mask(forget.to(dtype), preserve.to(dtype), 1e-15, 1.0).tolist()
    assert of(torch.float16) == [False, True, False, True, False, False]
    assert of(torch.bfloat16) == [True, True, False, True, False, False]
    # squares that fp16 cannot hold: 1e-9 / 1e-8 is 0 / 0, and 1e-7 / 1e-8 infinite whatever the threshold
    small = torch.tensor([1e-7]), torch.tensor([1e-8])
    assert released.ratio_mask(*small, 1e-15, 100.0).tolist() == [False]
    assert released.ratio_mask(*(x.half() for x in small), 1e-15, 100.0).tolist() == [True]


@pytest.fixture
def masked(nano, tiny, tmp_path):
    """masked(name, model=..., **flags) -> the mask of both parts."""

    def run(name: str, model=None, **flags) -> Mask:
        words = [str(word) for flag, value in flags.items() for word in (f"--{flag}", value)]
        run_script(
            "data_process/MLLMU_gen_mask.py", "--model_id", model or tiny["llava"], "--data_split_dir",
            nano / "MLLMMU-Bench", "--forget_ratio", RATIO, "--save_dir", tmp_path / name, *words,
        )  # fmt: skip
        return Mask.load(str(tmp_path / name / "mllmu_both_mask.pt"), "llava")

    return run


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_fisher_dtype(dtype, masked, masks, tiny, nano, processors, monkeypatch):
    """Against a naive pass that squares, sums and divides in that precision. The loss is scaled so that
    gradients are as small as a large model's: fp32 makes nothing of that, fp16 another mask."""
    from data_process import saliency

    default = Mask.load(str(masks("llava") / "mllmu_both_mask.pt"), "llava")  # made before anything is scaled
    scaled = lambda model, batch: token_nll(model, batch) * 1e-2
    monkeypatch.setattr(saliency, "token_nll", scaled)
    model = models.load_model(str(tiny["llava"])).eval()
    collate = Collator(processors["llava"], families.FAMILIES["llava"])
    bench = MLLMUBench(str(nano / "MLLMMU-Bench"), RATIO, cli.Problems())
    sums, counts = [], []
    for samples in (bench.forget(), bench.retain(), bench.text_knowledge()):
        total = {n: torch.zeros(p.shape, dtype=dtype) for n, p in model.named_parameters()}
        batches = [samples[i : i + 4] for i in range(0, len(samples), 4)]
        for batch in batches:
            model.zero_grad()
            scaled(model, collate(batch)).mean().backward()
            for name, p in model.named_parameters():
                if p.grad is not None:
                    total[name] += p.grad.to(dtype) ** 2
        sums.append(total)
        counts.append(len(batches))
    written = masked("m", fisher_dtype={torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype])
    part = families.part_of_parameters(model)
    differ = other = zeros = total = 0
    for name in part:
        if part[name] == "vision":  # of the language part's preserve sums the order of addition matters
            f, p = sums[0][name] / counts[0], sums[1][name] / counts[1]
            expected = (f + 1e-15) / (p + 1e-15) >= 1
            differ += int((written.of(name) != expected).sum())
            other += int((written.of(name) != default.of(name)).sum())
            nothing = (f == 0) & (p == 0)
            assert (written.of(name)[nothing] == (dtype is torch.bfloat16)).all()
            zeros += int(nothing.sum())
            total += expected.numel()
    assert differ <= 2e-3 * total
    assert other > 0.05 * total and zeros > 0
    assert written.about["released"]["fisher_dtype"] in ("fp16", "bf16") and "released" in default.about


def same(a: Mask, b: Mask) -> bool:
    return all(torch.equal(a.bits[n], b.bits[n]) for n in a.bits)


def test_fisher_mode_train(masked, masks, tiny, tmp_path):
    """Real LLaVA and Qwen2-VL have no dropout: nothing changes. With dropout the mask is another one, fixed
    by the seed."""
    plain = Mask.load(str(masks("llava") / "mllmu_both_mask.pt"), "llava")
    assert same(plain, masked("train", fisher_mode="train"))
    shutil.copytree(tiny["llava"], tmp_path / "dropout")
    with edited(tmp_path / "dropout" / "config.json") as config:
        config["text_config"]["attention_dropout"] = 0.5
    flags = {"model": tmp_path / "dropout", "fisher_mode": "train"}
    one, again = masked("1", **flags), masked("2", **flags)
    assert same(one, again) and not same(one, plain)


def test_labels_in_the_mask(masked, masks):
    plain = Mask.load(str(masks("llava") / "mllmu_both_mask.pt"), "llava")
    every, skipped = masked("all", loss_tokens="all"), masked("skip", answer_tokens="skip_first")
    assert not same(plain, every) and not same(plain, skipped) and not same(every, skipped)
    assert every.about["released"] == {
        name: getattr(Released(loss_tokens="all"), name) for name in released.MASK_SWITCHES
    }


# ---------------------------------------------------------------- a replay in plain PyTorch
@pytest.mark.parametrize("released", [False, True], ids=["GA_Diff", "manifold as released"])
def test_a_run_is_the_plain_loop(released, tiny, train_args, masks, nano, processors, tmp_path):
    """The whole run, written anew without the suite's loop: with the model's own loss, one AdamW and the
    order of steps of the released code. This is also what replaying another implementation needs: a fixed
    data order, no clipping, decay, epsilon, all weights."""
    decay = 0.0 if released else 0.05
    path = masks("llava") / "mllmu_language_mask.pt"
    flags = {"lora": False, "shuffle": False, "adam_eps": 1e-2, "weight_decay": decay, "batch_size": 15}
    flags |= {"lr": 1e-2, "loss_tokens": "all", "lr_schedule": "constant", "max_grad_norm": 0}
    if released:
        flags |= {
            "max_grad_norm": 0.5,
            "lr_schedule": "linear",
            "schedule_every": "epoch",
            "clip": "before_mask",
        }
        flags |= {"clip_steps": "forget", "mask_names": "released", "unlisted": "train"}
        flags |= {"masked_weights": "drift", "grad_mask_path": path}
    run_script("MLLMU_manifold.py" if released else "MLLMU_GA_Diff.py", *train_args(**flags))

    model, processor = models.load_model(str(tiny["llava"])).train(), processors["llava"]
    bench = MLLMUBench(str(nano / "MLLMMU-Bench"), RATIO, cli.Problems())
    collate, mask = Collator(processor, families.FAMILIES["llava"]), Mask.load(str(path), "llava")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-2, weight_decay=decay)

    def step(samples, sign: float) -> None:
        inputs = collate(samples).inputs
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        (sign * model(**inputs, labels=labels).loss).backward()
        if released and sign < 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            for name, p in model.named_parameters():
                listed = any(word in name for word in ("proj", "fc", "linear", "mlp", "qkv"))
                if listed and name in mask.bits and p.grad is not None:
                    p.grad *= mask.of(name)
        optimizer.step()
        optimizer.zero_grad()

    forget, retain = bench.forget(), bench.retain()
    batches = [[s[i : i + 15] for i in range(0, len(s), 15)] for s in (forget, retain)]
    every = len(batches[1]) // len(batches[0])
    for i, batch in enumerate(batches[1]):
        if i % every == 0:
            step(batches[0][i // every % len(batches[0])], -1.0)
        step(batch, 1.0)
    before, after = weights(tiny["llava"]), weights(tmp_path / "run")
    for name, p in model.named_parameters():
        torch.testing.assert_close(after[name], p.detach(), atol=2e-6, rtol=0)
    assert max(float((after[n] - before[n]).abs().max()) for n in before) > 1e-3

"""Each method's objective: against values by hand, independent formulas, and the limits it must have."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import RATIO, ROOT, load_script, run_script, weights

from utils import families, models
from utils.collate import IGNORE, Batch, Collator
from utils.losses import sequence_log_prob, token_nll
from utils.masks import Mask, pack
from utils.mllmu import MLLMUBench
from utils.reference import AnswerStates, SequenceLogProbs
from utils.released import PAPER

METHODS = sorted(p.stem.removeprefix("MLLMU_") for p in ROOT.glob("MLLMU_*.py"))
BENCHMARKS = sorted(p.stem.removesuffix("_gen_mask") for p in ROOT.glob("data_process/*_gen_mask.py"))
# of tokens 0 and 1, after the first and after the second position
ODDS = torch.tensor([[1.0, 3.0], [3.0, 1.0]])


class TwoTokens(torch.nn.Module):
    """Predicts p(1) = 3/4, then p(1) = 1/4, whatever it reads."""

    def forward(self, input_ids, use_cache, logits_to_keep):
        logits = ODDS.log().expand(len(input_ids), -1, -1)  # (B, 2, V)
        return SimpleNamespace(logits=logits[:, logits_to_keep])


def two_tokens() -> Batch:
    """One sample, the answer 1 1: −log p of its tokens is log 4/3 and log 4."""
    return Batch({"input_ids": torch.tensor([[0, 1, 1]])}, torch.tensor([[IGNORE, 1, 1]]), ["a"])


NLL = (math.log(4 / 3), math.log(4))


def test_by_hand_ga_ga_diff_and_manifold():
    model, batch = TwoTokens(), two_tokens()
    ascent = pytest.approx([-x for x in NLL])
    assert load_script("MLLMU_finetune.py").loss(model, batch).tolist() == pytest.approx(NLL)
    assert load_script("MLLMU_reference.py").loss(model, batch).tolist() == pytest.approx(NLL)
    assert load_script("MLLMU_GA.py").forget_loss(model, batch).tolist() == ascent
    for name in ("MLLMU_GA_Diff.py", "MLLMU_KL_Min.py", "MLLMU_manifold.py"):
        script = load_script(name)
        assert script.forget_loss(model, batch, 1.0).tolist() == ascent
        assert script.forget_loss(model, batch, 0.5).tolist() == pytest.approx([-x / 2 for x in NLL])
    for name in ("MLLMU_GA_Diff.py", "MLLMU_manifold.py"):
        assert load_script(name).retain_loss(model, batch).tolist() == pytest.approx(NLL)


def test_by_hand_npo():
    """log p = −log(16/3); log p_ref = −2. L = −(2/β) · log σ(−β · difference)."""
    reference = SimpleNamespace(of=lambda batch: torch.tensor([-2.0]))
    loss = load_script("MLLMU_NPO.py").forget_loss(TwoTokens(), two_tokens(), reference, beta=0.4)
    difference = -math.log(16 / 3) + 2
    assert loss.tolist() == pytest.approx([5 * math.log(1 + math.exp(0.4 * difference))])


def test_by_hand_kl_min():
    """The vanilla model gives p(1) = 1/2 at both tokens. KL(1/2 ‖ 3/4) = KL(1/2 ‖ 1/4) = ½ log 4/3."""
    vanilla = SimpleNamespace(log_probs=lambda batch: torch.full((2, 2), 0.5).log())
    loss = load_script("MLLMU_KL_Min.py").retain_loss(TwoTokens(), two_tokens(), vanilla)
    assert loss.tolist() == pytest.approx([x + 0.5 * math.log(4 / 3) for x in NLL])


def test_by_hand_simnpo():
    """log p = −log(16/3) over two tokens. L = −α · (2/β) · log σ(−(β/2) · log p − γ)."""
    script = load_script("MLLMU_SimNPO.py")
    loss = script.forget_loss(TwoTokens(), two_tokens(), alpha=0.5, beta=4.0, gamma=0.25)
    exponent = 2 * math.log(16 / 3) - 0.25
    assert loss.tolist() == pytest.approx([0.25 * math.log(1 + math.exp(-exponent))])
    assert script.retain_loss(TwoTokens(), two_tokens()).tolist() == pytest.approx(NLL)


def test_simnpo_does_not_mind_an_answers_length():
    """Two answers of the same mean log-probability, of one and of three tokens, count the same."""
    logits = torch.tensor([[[0.0, 1.0]] * 4] * 2)
    model = lambda input_ids, use_cache, logits_to_keep: SimpleNamespace(logits=logits[:, logits_to_keep])
    labels = torch.tensor([[IGNORE, 1, IGNORE, IGNORE], [IGNORE, 1, 1, 1]])
    batch = Batch({"input_ids": torch.zeros(2, 4, dtype=torch.long)}, labels, ["a", "b"])
    one, three = load_script("MLLMU_SimNPO.py").forget_loss(model, batch, alpha=1.0, beta=4.5, gamma=0.0)
    assert one.item() == pytest.approx(three.item())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_values_by_hand(method):
    """A new method needs a test_by_hand_... above that calls its losses."""
    assert f'"MLLMU_{method}.py"' in Path(__file__).read_text(encoding="utf-8")


# ---------------------------------------------------------------- on tiny models
@pytest.fixture
def setting(family, tiny, processors, nano):
    """(arguments, samples, model, one batch of four samples) of a family."""
    from utils.cli import Problems

    args = SimpleNamespace(
        model_id=str(tiny[family]),
        dtype="fp32",
        attn="sdpa",
        ans_only=True,
        batch_size=3,
        released=PAPER,
    )
    samples = MLLMUBench(str(nano / "MLLMMU-Bench"), RATIO, Problems()).forget()[:7]
    batch = Collator(processors[family], families.FAMILIES[family])(samples[1:5])
    return args, samples, models.load_model(args.model_id).eval(), batch


def gradient(terms: torch.Tensor, model) -> torch.Tensor:
    model.zero_grad()
    terms.sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_npo_at_small_beta_is_ga(setting):
    args, samples, model, batch = setting
    script, reference = load_script("MLLMU_NPO.py"), SequenceLogProbs(args, args.model_id, samples)
    ga = gradient(sequence_log_prob(model, batch), model)
    far = Batch(batch.inputs, batch.labels, batch.ids)
    reference.by_id = {key: value + 3.0 for key, value in reference.by_id.items()}  # not at the start
    npo = {b: gradient(script.forget_loss(model, far, reference, beta=b), model) for b in (1e-4, 1.0)}
    assert torch.cosine_similarity(ga, npo[1e-4], dim=0) > 0.99999
    assert torch.allclose(ga, npo[1e-4], rtol=1e-3, atol=1e-4)
    assert npo[1.0].norm() < 0.2 * ga.norm()  # where the answer has become unlikely, NPO lets go


def test_npo_reference_is_the_vanilla_log_probability(setting):
    args, samples, model, batch = setting
    reference = SequenceLogProbs(args, args.model_id, samples).of(batch)
    with torch.no_grad():
        logits = model(**batch.inputs).logits.log_softmax(-1)[:, :-1]
    labels = batch.labels[:, 1:]
    picked = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    assert torch.allclose(reference, (picked * (labels != IGNORE)).sum(1), atol=1e-4)


def test_kl_is_zero_at_the_start_and_the_divergence_later(setting, tiny, family):
    args, samples, model, batch = setting
    script, vanilla = load_script("MLLMU_KL_Min.py"), AnswerStates(args, args.model_id, samples)
    assert torch.allclose(script.retain_loss(model, batch, vanilla), token_nll(model, batch), atol=1e-5)

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        kl = script.retain_loss(model, batch, vanilla) - token_nll(model, batch)
        current = model(**batch.inputs).logits.softmax(-1)[:, :-1]
        for name, p in model.named_parameters():
            p.copy_(before[name])
        old = model(**batch.inputs).logits.softmax(-1)[:, :-1]
    divergence = (old * (old.log() - current.log())).sum(-1)[batch.labels[:, 1:] != IGNORE]
    assert kl.min() > 0
    assert torch.allclose(kl, divergence, rtol=1e-3, atol=1e-5)


def test_a_model_that_caps_its_logits_is_not_compared_by_its_head(train_args, monkeypatch, capsys):
    load = models.load_model

    def capped(*args):
        model = load(*args)
        forward = model.forward

        def cap(*words, **more):
            out = forward(*words, **more)
            out.logits = 30 * torch.tanh(out.logits / 30)
            return out

        model.forward = cap
        return model

    monkeypatch.setattr(models, "load_model", capped)
    with pytest.raises(SystemExit) as end:
        run_script("MLLMU_KL_Min.py", *train_args())
    assert end.value.code == 2 and "give --kl_positions all" in capsys.readouterr().err


@pytest.mark.parametrize(("method", "lora"), [("NPO", True), ("KL_Min", True), ("KL_Min", False)])
def test_the_vanilla_model_is_loaded_once(method, lora, train_args, tiny, monkeypatch):
    """What the trainer's own model says, before the first step or with its adapter off, is what one loaded
    anew says."""
    from utils.training import Trainer

    loaded, load, kept, fit = [], models.load_model, [], Trainer.fit
    monkeypatch.setattr(models, "load_model", lambda *args: loaded.append(args[0]) or load(*args))
    monkeypatch.setattr(Trainer, "fit", lambda self, order: kept.extend((self, order)) or fit(self, order))
    monkeypatch.setattr(Trainer, "save", lambda self: None)
    run_script(f"MLLMU_{method}.py", *train_args(lora=lora, lora_dropout=0.5))
    assert loaded == [str(tiny["llava"])]
    trainer, order = kept
    (first,) = [
        states
        for phase in order.phases
        for states in phase.loss.keywords.values()
        if hasattr(states, "by_id")
    ]
    samples = order.phases[-1].samples
    anew = type(first)(trainer.args, str(tiny["llava"]), samples)
    after = type(first)(trainer.args, trainer, samples)
    far = lambda a, b: max(float((a.by_id[s.id] - b.by_id[s.id]).abs().max()) for s in samples)
    assert far(first, anew) < 1e-5 and (far(after, anew) < 1e-5) == lora
    assert trainer.model.training and all(
        p.requires_grad == ("lora" in n or not lora) for n, p in trainer.parameters.items()
    )


# ---------------------------------------------------------------- whole runs
def same(a: dict, b: dict) -> bool:
    return all(torch.allclose(a[name], b[name], rtol=0, atol=1e-7) for name in a)


@pytest.fixture
def runs(train_args, tmp_path, monkeypatch):
    """runs(name, script, mask bits or None, **flags) -> the trained weights."""

    def run(name: str, script: str, ones: bool | None = None, **flags) -> dict:
        argv = train_args(save_dir=tmp_path / name, lora=False, **flags)
        if ones is not None:
            made = lambda shapes: {n: pack(torch.full(shape, ones)) for n, shape in shapes.items()}
            monkeypatch.setattr(
                "utils.training.Trainer.load_mask",
                lambda self: Mask(
                    made({n: tuple(p.shape) for n, p in self.parameters.items()}),
                    {n: list(p.shape) for n, p in self.parameters.items()},
                ),
            )
            monkeypatch.setattr("utils.checks.read_mask", lambda *_: None)
            argv += ["--grad_mask_path", "any"]
        run_script(script, *argv)
        return weights(tmp_path / name)

    return run


def test_ga_diff_without_forgetting_is_fine_tuning_on_retain(runs, nano, tmp_path):
    flags = {"data_split_dir": nano / "MLLMMU-Bench" / f"retain_{100 - RATIO}"}
    script = load_script("MLLMU_finetune.py")
    assert script.MLLMUBench  # its data are the table itself
    plain = runs("ga_diff", "MLLMU_GA_Diff.py", forget_alpha=0)
    from utils.loop import batches

    original = batches.Stream.__init__

    def as_retain(self, samples, size, seed, shuffle):
        original(self, samples, size, seed.replace("everybody", "retain"), shuffle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches.Stream, "__init__", as_retain)  # the data order is seeded by the phase's name
        tuned = runs("finetune", "MLLMU_finetune.py", **flags)
    assert same(plain, tuned)


def test_manifold_with_an_all_ones_mask_is_ga_diff(runs):
    assert same(runs("ones", "MLLMU_manifold.py", ones=True), runs("ga_diff", "MLLMU_GA_Diff.py"))


def test_manifold_with_an_all_zeros_mask_is_fine_tuning_on_retain(runs):
    flags = {"lr_schedule": "constant"}  # forget steps count in a schedule, even where they move nothing
    zeros = runs("zeros", "MLLMU_manifold.py", ones=False, **flags)
    assert same(zeros, runs("retain", "MLLMU_GA_Diff.py", forget_alpha=0, **flags))
    assert not same(zeros, runs("ga_diff", "MLLMU_GA_Diff.py", **flags))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_script_of_every_family_runs_to_a_checkpoint(
    benchmark, method, family, tiny, nano, train_args, tmp_path
):
    """MLLMU-Bench on all weights, others with LoRA (masked methods always on all weights, with a fresh
    mask)."""
    save_dir, model = tmp_path / method, tiny[family]
    data = {"MLLMU": (nano / "MLLMMU-Bench", RATIO), "CLEAR": (nano / "CLEAR", 10)}[benchmark]
    where = {"model_id": model, "data_split_dir": data[0], "forget_ratio": data[1]}
    masked = "add_mask_path" in (ROOT / f"{benchmark}_{method}.py").read_text(encoding="utf-8")
    flags = {"save_dir": save_dir, "lora": benchmark != "MLLMU" and not masked}
    if masked:
        made = [str(w) for k, v in where.items() for w in (f"--{k}", v)]
        run_script(f"data_process/{benchmark}_gen_mask.py", *made, "--save_dir", tmp_path / "masks")
        flags["grad_mask_path"] = tmp_path / "masks" / f"{benchmark.lower()}_language_mask.pt"
    run_script(f"{benchmark}_{method}.py", *train_args(**where, **flags))
    before, after = weights(model), weights(save_dir)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    models.load_processor(str(save_dir))

"""Unlearning depth: the score by hand, and hidden states put from one tiny model into another."""

import json
from pathlib import Path

import pytest
import torch
from conftest import Made, make_tiny, picture_cell, sample

from eval.answering.forced import answer_log_prob
from eval.answering.patching import PatchSetup
from eval.results.depth import net, question_depth, summarise, verdict
from eval.results.depth_map import depth_rows, depth_svg
from eval.results.probes import Estimate
from utils.data import Question
from utils.models import load_model, load_processor

STAGES = {  # of the stand-ins: layers of the tower, of the decoder
    "llava": (2, 2), "qwen2_vl": (2, 2), "qwen2_5_vl": (4, 2), "mllama": (7, 5),
}  # fmt: skip


# ---------------------------------------------------------------- the score
def test_depth_by_hand():
    reference = {("picture", "a"): 0.5, ("picture", "b"): 1.5, ("answer", "a"): 0.05, ("answer", "b"): -1.0}
    own = {("picture", "a"): 0.25, ("picture", "b"): 3.0, ("answer", "a"): 9.0, ("answer", "b"): 9.0}
    assert question_depth(reference, own) == pytest.approx((0.25 + 1.5) / 2.0)
    assert question_depth(reference, {cell: -1.0 for cell in own}) == 0
    assert question_depth(reference, reference) == 1
    assert question_depth({("picture", "a"): 0.04}, {("picture", "a"): 1.0}) is None


LOST, ZERO = Estimate(40.0, [20.0, 60.0]), Estimate(5.0, [0.0, 10.0])


@pytest.mark.parametrize(
    ("net", "gap", "lost", "expected"),
    [
        (
            (0.0, 0.3),
            (1.0, 2.0),
            LOST,
            "depth 0.10 [0.00, 0.20], net 0.10 [0.00, 0.30]: hidden, not forgotten",
        ),
        (
            (0.6, 0.9),
            (1.0, 2.0),
            LOST,
            "depth 0.10 [0.00, 0.20], net 0.10 [0.60, 0.90]: gone from most layers",
        ),
        ((0.3, 0.6), (1.0, 2.0), LOST, "depth 0.10 [0.00, 0.20], net 0.10 [0.30, 0.60]: in between"),
        ((0.0, 0.3), (1.0, 2.0), ZERO, "depth 0.10 [0.00, 0.20], net 0.10 [0.00, 0.30]: nothing was lost"),
        ((0.0, 0.3), (0.0, 2.0), LOST, "depth 0.10 [0.00, 0.20]: the retrained model lacks nothing"),
        (None, (1.0, 2.0), LOST, "depth 0.10 [0.00, 0.20]: the retrained model lacks nothing"),
        (None, None, LOST, "depth 0.10: too few people to tell"),
    ],
)
def test_verdicts(net, gap, lost, expected):
    found = {"depth": 0.1, "interval": [0.0, 0.2], "net": {"value": 0.1, "interval": net}}
    assert verdict(found | {"gap": {"value": 1.0, "interval": gap}}, lost) == expected
    assert verdict({"depth": None}, lost) == "the retrained model lacks nothing"


def by_hand(deltas: dict[str, list[tuple[float, float]]]) -> tuple[list[Question], dict]:
    """{split: (delta at stage a, at stage b) of each person} -> questions, and what was measured of them."""
    asked = [
        Question(f"{split}/{k}", f"{split} {k}", split, "cloze", "image", "?", "x")
        for split, people in deltas.items()
        for k in range(len(people))
    ]
    pairs = [pair for people in deltas.values() for pair in people]
    return asked, {q.id: {"drops": {"answer": dict(zip("ab", pair))}} for q, pair in zip(asked, pairs)}


def test_what_patching_costs_anyway_is_taken_off():
    """By hand: 1 and 2 nats at people whom both know, 3 and 2 where the retrained model lacks something."""
    others = [(1.0, 2.0)] * 4
    asked, reference = by_hand({"forget": [(3.0, 2.0)] * 4, "retain": others})
    groups = [[q for q in asked if q.split == split] for split in ("forget", "retain")]
    _, own = by_hand({"forget": [(1.5, 4.0)] * 4, "retain": [(1.0, 0.5)] * 4})
    found = net(*groups, reference, own)
    assert found["gap"] == Estimate(2.0, [2.0, 2.0]) and found["depth"] == Estimate(0.25, [0.25, 0.25])
    assert net(*groups, reference, reference)["depth"].value == 1
    _, vanilla = by_hand({"forget": [(0.0, 0.0)] * 4, "retain": [(0.0, 0.0)] * 4})
    assert net(*groups, reference, vanilla)["depth"].value == 0
    _, knows = by_hand({"forget": [(1.0, 2.0)] * 4, "retain": others})
    same = net(*groups, knows, own)
    assert same["gap"].value == 0 and same["depth"] is None
    assert net(groups[0], [], reference, own) is None


# ---------------------------------------------------------------- hidden states
WORDS = ("baker", "pilot", "nurse", "chess", "archery", "sushi", "tacos", "goldfish", "parrot", "Bel", "7")


def changed(folder: Path, save: Path, change) -> Path:
    """A copy of a model, in fp32, that `change` has been at."""
    model = load_model(str(folder), "fp32")
    with torch.no_grad():
        change(model)
    model.save_pretrained(save)
    load_processor(str(folder)).save_pretrained(save)
    return save


@pytest.fixture(scope="session")
def pair(nano, tiny, tmp_path_factory):
    """pair[family]: folders of a vanilla model, sure of what it says, and of a retrained one that says
    something else."""

    def make(family: str) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("pair")
        vanilla = changed(
            tiny[family], folder / "vanilla", lambda model: model.get_output_embeddings().weight.mul_(8)
        )
        return vanilla, make_tiny(family, nano, folder / "retrained", seed=1)

    return Made(make)


def worker(vanilla: Path, source: Path):
    return PatchSetup(str(vanilla), None, "fp32", "sdpa", 8, source=str(source)).start("cpu")


def known(patcher) -> list:
    """Questions about two pictures and in text, with the answers that are likeliest to the vanilla model."""
    cells = [picture_cell(32, 32), picture_cell(96, 64, "blue")]
    asked = [("What does the person do?", cells[0]), ("Which pet, if any, is it?", cells[1])]
    asked += [("What does Ann Bo do?", None), ("Where in the world does Bo Ann come from?", None)]
    found = []
    for k, (question, cell) in enumerate(asked):
        tried = [sample(question, word, cell, f"{k}/{word}", str(k)) for word in WORDS]
        log_prob = answer_log_prob(patcher.model, patcher.collator(tried))
        found.append(tried[int(log_prob.argmax())])
    return found


def asked_about(samples) -> list[Question]:
    kind = lambda s: "image" if s.picture else "text"
    return [Question(s.id, s.person, "forget", "cloze", kind(s), s.question, s.answer) for s in samples]


def measured(patcher, samples) -> dict:
    pictures, texts = [s for s in samples if s.picture], [s for s in samples if not s.picture]
    answers = patcher.answer(pictures)[0] + patcher.answer(texts)[0]
    return dict(zip([s.id for s in pictures + texts], answers, strict=True))


@pytest.mark.parametrize("family", STAGES)
def test_a_copy_of_the_retrained_model_is_as_deep_and_the_vanilla_model_is_not(family, pair):
    vanilla, retrained = pair[family]
    patcher = worker(vanilla, retrained)
    samples = known(patcher)
    towers, decoders = STAGES[family]
    assert [s.part for s in patcher.stages] == ["tower"] * towers + ["projector"] + ["decoder"] * decoders
    reference = measured(patcher, samples)
    places = {"picture", "answer"} if samples[0].picture else {"question", "answer"}
    assert reference[samples[0].id]["drops"].keys() == places
    assert len(reference[samples[0].id]["drops"]["answer"]) == decoders
    of_pictures = reference[samples[0].id]["drops"]["picture"]
    assert len(of_pictures) == towers + 1 + decoders * (family != "mllama")

    for s in samples:  # batches change nothing
        (alone,) = patcher.answer([s])[0]
        assert alone["before"] == pytest.approx(reference[s.id]["before"], abs=1e-4)
        for place, drops in alone["drops"].items():
            assert reference[s.id]["drops"][place] == pytest.approx(drops, abs=1e-3)

    questions = asked_about(samples)
    copy = summarise(questions, patcher.stages, reference, reference)
    patcher.source = patcher.model
    none = summarise(questions, patcher.stages, reference, measured(patcher, samples))
    for modality in ("image", "text"):
        assert copy[modality]["depth"] == 1 and copy[modality]["known_to_both"] == 0
        assert none[modality]["depth"] == 0
        stages = none[modality]["places"]["answer"]["stages"].values()
        assert all(stage["model"]["mean"] == 0 for stage in stages)  # to the last bit
        assert all(stage["erased"] in (0, None) for stage in stages)


def test_a_model_whose_head_alone_is_damaged_is_deep_in_no_other_layer(pair, tmp_path):
    vanilla, retrained = pair["llava"]
    reference = measured(patcher := worker(vanilla, retrained), samples := known(worker(vanilla, retrained)))

    def last_layer(model) -> None:
        torch.manual_seed(0)  # not what tests before have left
        model.get_decoder().layers[-1].mlp.down_proj.weight.normal_(std=2)

    for change, damaged in ((last_layer, True), (lambda m: m.lm_head.weight.normal_(), False)):
        folder = changed(vanilla, tmp_path / str(damaged), change)
        own = measured(worker(vanilla, folder), samples)
        found = summarise(asked_about(samples), patcher.stages, reference, own)
        for modality in ("image", "text"):
            *others, last = found[modality]["places"]["answer"]["stages"].values()
            assert (last["model"]["mean"] > 0.05) == damaged
            assert all(stage["model"]["mean"] == 0 for stage in others)
            (other,) = set(found[modality]["places"]) - {"answer"}
            assert found[modality]["places"][other]["depth"] == 0
            assert (found[modality]["depth"] > 0) == damaged and found[modality]["depth"] < 1


def test_models_of_different_sizes_are_refused(pair):
    with pytest.raises(SystemExit, match="of different sizes"):
        worker(pair["llava"][0], pair["mllama"][1])


# ---------------------------------------------------------------- the map
def test_the_map_shows_every_number_on_hover(pair, tmp_path):
    patcher = worker(*pair["llava"])
    samples = known(patcher)
    reference = measured(patcher, samples)
    modalities = summarise(asked_about(samples), patcher.stages, reference, reference)
    found = {"stages": [{"name": s.name, "part": s.part} for s in patcher.stages], "modalities": modalities}
    found = json.loads(json.dumps(found))
    coverage = {
        "vision": {
            "vision_tower.encoder.layers.0": {"share": 0.5, "weights": 4, "forget": 1e-6, "preserve": 2e-6},
            "multi_modal_projector.linear_1": {"share": 0.25, "weights": 4},
        }
    }
    drawing = depth_svg({"GA <b>": found}, coverage, "map1")
    assert drawing.startswith("<svg") and "<b>" not in drawing and 'id="map1-tip0"><title>' in drawing
    assert "people it knows" in drawing
    assert drawing.count("<title>GA &lt;b&gt; · ") == len(depth_rows({"GA <b>": found})) == 5 + 2 + 2 + 2
    assert "multi_modal_projector: 25.0 % of the weights are salient" in drawing
    assert depth_svg({}, coverage, "map1") is None

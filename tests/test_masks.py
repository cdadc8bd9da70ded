"""Mask files and the masked step: what is outside a mask does not move by a bit."""

import copy
import pickle

import pytest
import torch

from utils.families import FAMILIES
from utils.loop.optimizer import AdamW
from utils.masks import FORMAT, Mask, MaskError, mask_gradients, pack, unpack
from utils.reading.weightless import empty_model


def shapes_of(folder) -> dict[str, list[int]]:
    return {name: list(p.shape) for name, p in empty_model(str(folder)).named_parameters()}


def mask_of(tensors: dict[str, torch.Tensor]) -> Mask:
    return Mask({n: pack(m) for n, m in tensors.items()}, {n: list(m.shape) for n, m in tensors.items()})


# ---------------------------------------------------------------- bits
@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (9,), (3, 5), (2, 3, 5, 7), (64,), (1, 1), ()])
def test_pack_and_unpack(shape):
    torch.manual_seed(0)
    for mask in (torch.rand(shape) < 0.5, torch.zeros(shape).bool(), torch.ones(shape).bool()):
        bits = pack(mask)
        assert bits.dtype == torch.uint8 and bits.numel() == -(-mask.numel() // 8)
        assert torch.equal(unpack(bits, list(shape)), mask)


def test_the_first_weight_is_the_highest_bit():
    assert pack(torch.tensor([True, False, False, False, False, False, False, False, True])).tolist() == [
        128,
        128,
    ]


def test_pack_of_a_tensor_that_is_not_contiguous():
    mask = (torch.arange(15).view(3, 5) % 4 == 0).t()
    assert torch.equal(unpack(pack(mask), mask.shape), mask)


def test_count_and_of():
    mask = mask_of({"a": torch.ones(3, 3).bool(), "b": torch.tensor([True, False])})
    assert mask.count() == (10, 11)
    assert mask.of("c") is None and mask.of("b").tolist() == [True, False]


# ---------------------------------------------------------------- the step
def set_up(seed=0):
    """Parameters in two groups: "part" half masked, "none" named without a bit, "strange" not named."""
    torch.manual_seed(seed)
    shapes = {"part": (5, 7), "none": (3,), "strange": (4, 4), "all": (9,)}
    params = {n: torch.nn.Parameter(torch.randn(s)) for n, s in shapes.items()}
    two = [
        {"params": [params["part"], params["none"]]},
        {"params": [params["strange"], params["all"]], "lr": 0.03},
    ]
    optimizer = AdamW(two, lr=0.1, weight_decay=0.1, betas=(0.9, 0.99))
    bits = torch.rand(5, 7) < 0.4
    mask = mask_of({"part": bits, "none": torch.zeros(3).bool(), "all": torch.ones(9).bool()})
    return params, optimizer, mask, bits


def gradients(params):
    for p in params.values():
        p.grad = torch.randn_like(p)


def forget_step(params, optimizer, mask):
    gradients(params)
    mask_gradients(params, mask)
    optimizer.step({p: mask.bits[n] for n, p in params.items() if n in mask.bits})
    optimizer.zero_grad()


def test_outside_weights_and_moments_keep_every_bit():
    params, optimizer, mask, bits = set_up()
    for _ in range(3):  # retain steps give every weight momentum
        gradients(params)
        optimizer.step()
    moments = lambda p: {
        k: v for k, v in optimizer.state[p].items() if torch.is_tensor(v) and v.shape == p.shape
    }
    before = {n: p.detach().clone() for n, p in params.items()}
    old = {n: {k: v.clone() for k, v in moments(p).items()} for n, p in params.items()}
    steps = {n: optimizer.state[p]["step"].clone() for n, p in params.items()}
    assert len(old["part"]) == 2
    for _ in range(2):
        forget_step(params, optimizer, mask)
    for name in ("none", "strange"):
        assert torch.equal(params[name], before[name])
        assert all(torch.equal(v, old[name][k]) for k, v in moments(params[name]).items())
        assert torch.equal(optimizer.state[params[name]]["step"], steps[name])
    assert torch.equal(params["part"][~bits], before["part"][~bits])
    assert (params["part"][bits] != before["part"][bits]).all()
    assert (params["all"] != before["all"]).all()
    for key, value in moments(params["part"]).items():
        assert torch.equal(value[~bits], old["part"][key][~bits]), key
    assert (moments(params["part"])["exp_avg"][bits] != old["part"]["exp_avg"][bits]).all()
    assert len(optimizer.param_groups) == 2 and len(optimizer.param_groups[0]["params"]) == 2
    gradients(params)
    optimizer.step()
    assert all((p != before[n]).all() for n, p in params.items()), "a retain step moves everything"


def test_a_first_forget_step_makes_no_state_outside():
    params, optimizer, mask, bits = set_up()
    before = {n: p.detach().clone() for n, p in params.items()}
    forget_step(params, optimizer, mask)
    assert torch.equal(params["part"][~bits], before["part"][~bits])
    assert (optimizer.state[params["part"]]["exp_avg"][~bits] == 0).all()
    assert (optimizer.state[params["part"]]["exp_avg_sq"][~bits] == 0).all()
    assert params["none"] not in optimizer.state and params["strange"] not in optimizer.state


def test_an_all_ones_mask_is_a_plain_step():
    results = []
    for masked in (True, False):
        params, optimizer, _, _ = set_up()
        ones = mask_of({n: torch.ones_like(p).bool() for n, p in params.items()})
        torch.manual_seed(1)
        for _ in range(3):
            if masked:
                forget_step(params, optimizer, ones)
            else:
                gradients(params)
                optimizer.step()
        results.append(
            ({n: p.detach() for n, p in params.items()}, copy.deepcopy(optimizer.state_dict()["state"]))
        )
    (with_mask, state), (plain, plain_state) = results
    assert all(torch.equal(with_mask[n], plain[n]) for n in plain)
    assert all(torch.equal(state[k][key], plain_state[k][key]) for k in plain_state for key in plain_state[k])


def test_mask_gradients():
    params, _, mask, bits = set_up()
    gradients(params)
    whole = params["part"].grad.clone()
    mask_gradients(params, mask)
    assert params["none"].grad is None and params["strange"].grad is None
    assert torch.equal(params["part"].grad, whole * bits)


# ---------------------------------------------------------------- checks
def test_check_accepts_a_fitting_mask():
    mask_of({"a": torch.tensor([True, False])}).check({"a": [2], "b": [3]})


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ({"x": torch.ones(2).bool()}, ["x", "does not have"]),
        ({"a": torch.ones(3).bool()}, ["a", "[3]", "[2]"]),
        ({"a": torch.zeros(2).bool()}, ["no weight"]),
        ({}, ["no weight"]),
    ],
)
def test_check_refuses(mask, words):
    with pytest.raises(MaskError) as why:
        mask_of(mask).check({"a": [2], "b": [3]})
    assert all(word in str(why.value) for word in words)


# ---------------------------------------------------------------- files
def test_save_and_load(tmp_path):
    torch.manual_seed(0)
    masks = {"a": torch.rand(100, 101) < 0.3, "b": torch.rand(5) < 0.5}
    mask = mask_of(masks)
    mask.about = {"part": "both", "threshold": 1.0}
    mask.save(tmp_path / "m.pt")
    loaded = Mask.load(str(tmp_path / "m.pt"), "llava")
    assert all(torch.equal(loaded.of(name), m) for name, m in masks.items())
    assert loaded.about == mask.about and loaded.shapes == mask.shapes
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    assert {n: b.numel() for n, b in content["weight"].items()} == {"a": 1263, "b": 1}
    assert (tmp_path / "m.pt").stat().st_size < 1263 + 4000
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]


def test_garbage_is_a_mask_error(tmp_path):
    files = {"text": b"not a mask", "empty": b"", "pickle": pickle.dumps({"weight": 3})}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"weights": {}}, tmp_path / "other")
    torch.save([1, 2], tmp_path / "list")
    torch.save({"weight": object}, tmp_path / "code")
    for name, about in {"shape": 3, "model": 3, "data": [1]}.items():
        ours = {"format": FORMAT, "weight": {}, "shape": {}, name: about}
        torch.save(ours, tmp_path / f"ours, {name}")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(MaskError, match="is not a mask file"):
            Mask.load(str(path), "llava")


def test_half_a_file_is_a_mask_error(tmp_path):
    mask_of({"a": torch.ones(999).bool()}).save(tmp_path / "m.pt")
    whole = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "m.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MaskError):
        Mask.load(str(tmp_path / "m.pt"), "llava")


@pytest.mark.parametrize(
    ("change", "said"),
    [({"a": torch.full((3,), float("nan"))}, "other than 0"), ({"a": torch.tensor([0.5])}, "other than 0"),
     ({None: torch.ones(3)}, "no parameter's name"), ({"a": torch.tensor([0, 2])}, "other than 0 and 1")],
)  # fmt: skip
def test_released_masks_hold_zeros_and_ones(tmp_path, change, said):
    torch.save({"weight": change}, tmp_path / "m.pt")
    with pytest.raises(MaskError, match=said):
        Mask.load(str(tmp_path / "m.pt"), "llava")


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [("weight", torch.tensor([255, 255], dtype=torch.uint8), "behind its last weight"),
     ("weight", torch.ones(3, dtype=torch.uint8), "3 bytes for 9 weights"),
     ("weight", torch.ones(2), "not packed"), ("weight", 0, "not packed"),
     ("shape", None, "no shape"), ("shape", [9.0], "no shape"), ("shape", [-3, -3], "no shape")],
)  # fmt: skip
def test_all_of_a_mask_is_checked_when_it_is_read(tmp_path, part, value, said):
    whole = {"format": FORMAT, "weight": {"a": pack(torch.ones(9).bool())}, "shape": {"a": [3, 3]}}
    torch.save(whole, tmp_path / "m.pt")
    assert Mask.load(str(tmp_path / "m.pt"), "llava").count() == (9, 9)
    torch.save(whole | {part: {"a": value}}, tmp_path / "m.pt")
    with pytest.raises(MaskError, match=said):
        Mask.load(str(tmp_path / "m.pt"), "llava")


OLD = {  # today's beginning of a name -> that of transformers 4, as in the released masks
    "llava": {
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    },
    "qwen2_vl": {"model.visual.": "visual.", "model.language_model.": "model.", "lm_head.": "lm_head."},
    "mllama": {
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.vision_model.": "vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    },
}


def old_name(name: str, family: str) -> str:
    new, old = next((n, o) for n, o in OLD[family].items() if name.startswith(n))
    # a transformers whose CLIP tower still has the inner module keeps its name
    return old + name.removeprefix(new).removeprefix("vision_model." if family == "llava" else "\0")


def test_released_masks_load(family, tiny, tmp_path):
    shapes = shapes_of(tiny[family])
    torch.manual_seed(0)
    masks = {name: torch.rand(shape) < 0.5 for name, shape in shapes.items()}
    without_gradient = [name for name in masks if name.endswith("bias")]
    content = {old_name(n, family): 0 if n in without_gradient else m for n, m in masks.items()}
    torch.save({"weight": content}, tmp_path / "released.pt")
    loaded = Mask.load(str(tmp_path / "released.pt"), family)
    loaded.check(shapes)
    assert set(loaded.bits) == set(masks) - set(without_gradient)
    assert all(torch.equal(loaded.of(n), masks[n]) for n in loaded.bits)


def test_a_released_mask_of_a_family_without_known_names(tmp_path):
    torch.save({"weight": {"a": torch.ones(2).bool()}}, tmp_path / "released.pt")
    with pytest.raises(MaskError, match="not for gemma3"):
        Mask.load(str(tmp_path / "released.pt"), "gemma3")


def test_masks_with_the_names_of_today_load(family, tiny, tmp_path):
    shapes = shapes_of(tiny[family])
    masks = {name: torch.ones(shape).bool() for name, shape in shapes.items()}
    torch.save({"weight": masks}, tmp_path / "released.pt")
    loaded = Mask.load(str(tmp_path / "released.pt"), family)
    loaded.check(shapes)
    assert set(loaded.bits) == set(masks)


def test_every_family_names_its_parts_whole(family, tiny):
    from utils.families import part_of_parameters

    parts = part_of_parameters(empty_model(str(tiny[family])))
    assert set(parts.values()) == {"vision", "language"}
    for name, part in parts.items():
        assert part == ("vision" if "vis" in name or "projector" in name else "language"), name
    assert family in FAMILIES

"""AdamW with masks and compensation, against torch's own."""

import pytest
import torch

from utils import masks as mask_files
from utils.loop import eight_bit
from utils.loop.optimizer import AdamW
from utils.masks import pack

SETTINGS = {"lr": 1e-3, "weight_decay": 0.1, "eps": 1e-8}
SHAPES = [(64, 48), (1000,), (7, 3, 5), (1,)]


def parameters(dtype=torch.float32, seed=0, shapes=SHAPES):
    torch.manual_seed(seed)
    return [torch.nn.Parameter((0.02 * torch.randn(shape)).to(dtype)) for shape in shapes]


def give_gradients(ps, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in ps:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setitem(mask_files.PIECE, "cpu", 256)


def state_of(opt, p) -> dict:
    return {name: value.clone() for name, value in opt.state[p].items()}


def test_without_mask_in_fp32_it_is_torchs():
    ours, theirs = parameters(), parameters()
    a, b = AdamW(ours, **SETTINGS), torch.optim.AdamW(theirs, fused=True, **SETTINGS)
    for step in range(4):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        a.step()
        b.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs))


MOMENTS = [torch.float32, torch.bfloat16, eight_bit.DTYPE]
KINDS = [  # weights, moments, compensated
    (torch.float32, torch.float32, True),
    (torch.float32, torch.bfloat16, True),
    (torch.bfloat16, torch.float32, True),
    (torch.bfloat16, torch.bfloat16, True),
    (torch.bfloat16, torch.float32, False),
    (torch.float32, eight_bit.DTYPE, True),
    (torch.bfloat16, eight_bit.DTYPE, True),
]


@pytest.mark.parametrize(("dtype", "moments", "compensated"), KINDS)
@pytest.mark.parametrize("first", [False, True])
def test_a_masked_step_is_the_plain_one_inside_and_none_outside(dtype, moments, compensated, first):
    """Weights, moments and compensation; on a fresh optimizer and on one with momentum."""
    ours, plain = parameters(dtype), parameters(dtype)
    a, b = (AdamW(ps, compensated, moments, **SETTINGS) for ps in (ours, plain))
    if not first:
        for step in range(3):
            give_gradients(ours, step)
            give_gradients(plain, step)
            a.step()
            b.step()
    masks = [torch.rand(p.shape) < 0.4 for p in ours]
    before = [p.detach().clone() for p in ours]
    states = [state_of(a, p) for p in ours]
    give_gradients(ours, 9)
    give_gradients(plain, 9)
    a.step({p: pack(m) for p, m in zip(ours, masks)})
    b.step()
    for p, q, m, old, state in zip(ours, plain, masks, before, states):
        assert torch.equal(p[m], q[m]) and torch.equal(p[~m], old[~m])
        for name in set(a.state[p]) - {"step", *coded(a.state[p])}:
            new = a.state[p][name]
            assert torch.equal(new[m], b.state[q][name][m]), name
            kept = state[name] if state else torch.zeros_like(new)
            assert torch.equal(new[~m], kept[~m]), name
        assert a.state[p]["step"] == b.state[q]["step"]


def coded(state: dict) -> set[str]:
    """Names of the moments in 8 bits, and of their scales."""
    scales = {scale for scale in eight_bit.SCALES.values() if scale in state}
    return scales and scales | set(eight_bit.SCALES)


def read(opt, p, name) -> torch.Tensor:
    """A moment in fp32."""
    if not coded(opt.state[p]):
        return opt.state[p][name].float()
    whole = eight_bit.Coded(name, opt.state[p], mask_files.Piece(p.shape), eight_bit.block_of(p.shape))
    return whole.read(torch.empty(p.shape))


def test_a_masked_step_with_moments_in_8_bits():
    """Blocks outside as a whole keep every bit; elsewhere moments outside stay within their rounding."""
    (ours,), (plain,) = (parameters(torch.bfloat16, shapes=[(64, 512)]) for _ in range(2))
    a, b = (AdamW([p], moments=eight_bit.DTYPE, **SETTINGS) for p in (ours, plain))
    for step in range(3):
        for opt, p in ((a, ours), (b, plain)):
            give_gradients([p], step)
            opt.step()
    mask = torch.zeros(64, 512, dtype=torch.bool)
    mask[:20] = True
    mask[20:40, ::3] = True  # every block of these rows
    before = {name: read(a, ours, name) for name in eight_bit.SCALES}
    kept = state_of(a, ours)
    for p in (ours, plain):
        give_gradients([p], 9)
    a.step({ours: pack(mask)})
    b.step()
    for name, scale in eight_bit.SCALES.items():
        new, old = a.state[ours], b.state[plain]
        assert torch.equal(new[name][40:], kept[name][40:]) and torch.equal(new[scale][40:], kept[scale][40:])
        assert torch.equal(new[name][:20], old[name][:20]) and torch.equal(new[scale][:20], old[scale][:20])
        outside = ~mask[20:40]
        off = (read(a, ours, name)[20:40] - before[name][20:40])[outside].abs()
        size = before[name][20:40][outside].abs()
        assert (off <= (1 / 8 if name == "exp_avg_sq" else 1 / 16) * 1.01 * size + 1e-4 * size.max()).all()


@pytest.mark.parametrize(("shape", "block"), [
    ((4096, 11008), 256), ((1152, 588), 196), ((1280, 3, 2, 14, 14), 196), ((10, 48), 48),
    ((4096,), 0), ((100, 257), 0), ((3, 62), 62), ((5, 0), 0),
])  # fmt: skip
def test_blocks_of_8_bit_moments_are_parts_of_rows(shape, block):
    assert eight_bit.block_of(torch.Size(shape)) == block


def test_8_bit_moments_of_gradients_of_every_size():
    """A moment is within its rounding; gradients of 0, or of nearly 0, move nothing far."""
    (p,) = ps = parameters(shapes=[(8, 256)])
    before, opt = p.detach().clone(), AdamW(ps, moments=eight_bit.DTYPE, lr=1e-3, weight_decay=0.0)
    sizes = torch.logspace(0, -7, 256)
    p.grad = sizes * torch.tensor([1.0, -1e-6, 1e-12, 1e-18, 1e6, 1e-3, 1e3, 0.0])[:, None]
    opt.step()
    kept = sizes > 3e-5  # above it a code has all its digits
    for name, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
        exact = p.grad.pow(power) * (0.1 if power == 1 else 0.001)
        found = read(opt, p, name)
        near = torch.isclose(found, exact, rtol=power / 15, atol=0)[[0, 1, 4, 5, 6]][:, kept]
        assert near.all() and (found[7] == 0).all()
    opt.step()
    moved = (p - before).abs()
    assert (moved <= 2.2e-3).all() and (moved[7] == 0).all()


def test_a_parameter_without_a_mask_takes_the_whole_step_and_one_without_a_gradient_none():
    ours, plain = parameters(), parameters()
    a, b = AdamW(ours, **SETTINGS), AdamW(plain, **SETTINGS)
    give_gradients(ours, 0)
    give_gradients(plain, 0)
    ours[2].grad = plain[2].grad = None
    a.step({ours[0]: pack(torch.zeros(ours[0].shape).bool())})
    b.step()
    assert torch.equal(ours[0], parameters()[0]) and torch.equal(ours[1], plain[1])
    assert torch.equal(ours[2], parameters()[2]) and ours[2] not in a.state


def test_weights_in_another_order_than_their_shape():
    """A transposed parameter is masked by its shape, not by its memory."""
    weight = torch.nn.Parameter(torch.randn(40, 30).t())
    before, mask = weight.detach().clone(), torch.rand(30, 40) < 0.5
    weight.grad = torch.ones_like(weight)
    AdamW([weight], **SETTINGS).step({weight: pack(mask)})
    assert torch.equal(weight[~mask], before[~mask]) and (weight[mask] != before[mask]).all()


def update(dtype, compensated=True, moments=torch.float32, steps=100, lr=1e-5):
    """What `steps` steps add to weights of standard deviation 0.02, compensation included, in fp32."""
    (p,) = ps = parameters(dtype, shapes=[(200, 100)])
    p.data = parameters(torch.bfloat16, shapes=[(200, 100)])[0].data.to(dtype)
    start, signs = (
        p.detach().float().clone(),
        torch.randn(p.shape, generator=torch.Generator().manual_seed(1)),
    )
    opt = AdamW(ps, compensated, moments, lr=lr)
    for step in range(steps):
        noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        p.grad = (signs + 2 * noise).to(dtype)
        opt.step()
    return p.detach().float() - start


def cosine(a, b) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


@pytest.mark.parametrize("moments", MOMENTS)
def test_compensated_bf16_takes_the_steps_of_fp32_and_plain_bf16_does_not(moments):
    exact, ours = update(torch.float32), update(torch.bfloat16, moments=moments)
    assert cosine(ours, exact) > 0.97 and float(ours.norm() / exact.norm()) == pytest.approx(1, abs=0.05)
    assert cosine(update(torch.bfloat16, compensated=False), exact) < 0.9


def test_8_bit_moments_take_the_steps_of_fp32_where_neighbours_differ_in_size():
    """Log-normal sizes within a block: where small second moments are lost, steps grow far too long."""
    found = {}
    for moments in (torch.float32, eight_bit.DTYPE):
        (p,) = ps = parameters(shapes=[(20, 256)])
        start, opt = p.detach().clone(), AdamW(ps, moments=moments, lr=1e-5, weight_decay=0.0)
        generator = torch.Generator().manual_seed(0)
        size = 1e-6 * torch.exp(1.5 * torch.randn(p.shape, generator=generator))
        mean = 0.5 * torch.randn(p.shape, generator=generator)
        for _ in range(300):
            p.grad = size * (mean + torch.randn(p.shape, generator=generator))
            opt.step()
        found[moments] = p.detach() - start
    exact, ours = found.values()
    assert cosine(ours, exact) > 0.99 and float(ours.norm() / exact.norm()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("moments", MOMENTS)
def test_the_second_moment_does_not_stall(moments):
    (p,) = ps = parameters(torch.bfloat16, shapes=[(20, 50)])
    opt = AdamW(ps, moments=moments, lr=1e-6)
    for _ in range(1500):
        p.grad = torch.ones_like(p)
        opt.step()
    mean = float(read(opt, p, "exp_avg_sq").mean())
    assert mean == pytest.approx(1 - 0.999**1500, rel=0.01)


@pytest.mark.parametrize("moments", MOMENTS)
def test_a_kept_state_goes_on_bit_for_bit(moments, tmp_path):
    whole, stopped = parameters(torch.bfloat16), parameters(torch.bfloat16)
    a, b = (AdamW(ps, moments=moments, **SETTINGS) for ps in (whole, stopped))
    for step in range(6):
        for ps, opt in ((whole, a), (stopped, b)):
            give_gradients(ps, step)
            opt.step()
        if step == 2:
            torch.save(b.state_dict(), tmp_path / "state.pt")
            b = AdamW(stopped, moments=moments, **SETTINGS)
            b.load_state_dict(torch.load(tmp_path / "state.pt"))
    for p, q in zip(whole, stopped):
        assert torch.equal(p, q)
        assert all(torch.equal(a.state[p][name], b.state[q][name]) for name in a.state[p])
    assert a.state[whole[0]]["exp_avg"].dtype == moments

"""AdamW's moments in 8 bits, with one scale in fp32 for a block of neighbours.

The first moment is a float8 number of torch's (e4m3: a sign, 4 bits of exponent, 3 of mantissa). The second
is kept as its root, which has no sign and gets 4 bits of mantissa. Squared, gradients would span twice the
decades, and what falls below the smallest code would divide by nearly nothing. That, and not the number of
bits, is what the usual 8-bit moments lose (docs/memory.md).

A block is part of one row of a weight, so that scales are cut over processes as their weight is. The largest
number of a block is exact, so that the block as a whole neither stalls nor drifts; others are within 1/16
(roots 1/32) of their size down to about 3e-5 of the largest. Blocks with scales: Dettmers et al. 2022, arXiv
2110.02861.
"""

from __future__ import annotations

from functools import lru_cache

import torch

DTYPE = torch.uint8  # what holds the codes
FORMAT = torch.float8_e4m3fn  # of the first moment
CUT = 19  # bits of fp32 that a root's code does not have: exponent and 4 bits of mantissa are left
LARGEST = {"exp_avg": 448.0, "exp_avg_sq": 1.9375}  # 1.1111 binary, a root's code 255
LOWEST = (0b01111111_1111) - 255  # what stands for code 0 in the bits of a root that are left
BLOCK = 256  # most neighbours that share a scale
SCALES = {"exp_avg": "exp_avg_scale", "exp_avg_sq": "exp_avg_sq_scale"}


@lru_cache
def block_of(shape: torch.Size) -> int:
    """How many neighbours of a row share a scale: the longest that divides the row; 0 where moments stay in
    fp32, as those of vectors (a model has few of them) and of rows without a divisor of 32 to BLOCK."""
    width = shape[1:].numel()
    longest = max(n for n in range(1, BLOCK + 1) if width % n == 0) if width else 0
    return longest if len(shape) > 1 and longest >= 32 else 0


def empty_state(p: torch.Tensor, block: int) -> dict[str, torch.Tensor]:
    """Moments of 0 and their scales, (rows, blocks of a row), for a weight or a process's share of it."""
    per_row = p.detach().flatten(1)
    scales = lambda: torch.zeros_like(per_row[:, : per_row.shape[1] // block], dtype=torch.float32)
    state = {name: torch.zeros_like(p, dtype=DTYPE) for name in SCALES}
    return state | {scale: scales().contiguous() for scale in SCALES.values()}


class Coded:
    """The moment `name` of a piece of a weight (utils.masks.Piece): codes, of the weight's shape or (n,), and
    a scale for each block."""

    def __init__(self, name: str, state: dict[str, torch.Tensor], piece, block: int):
        self.name, self.block = name, block
        self.codes, self.scales = piece(state[name]), state[SCALES[name]].view(-1)
        if piece.start is not None:
            self.scales = self.scales[piece.start // block : piece.stop // block]

    def read(self, out: torch.Tensor) -> torch.Tensor:
        """out <- the moment, in fp32."""
        if self.name == "exp_avg":
            out.copy_(self.codes.view(FORMAT))
        else:
            codes = self.codes.to(torch.int32)
            out.copy_(((codes + LOWEST << CUT) * (codes > 0)).view(torch.float32))
        out.view(-1, self.block).mul_(self.scales[:, None])
        return out if self.name == "exp_avg" else out.square_()

    def write(self, new: torch.Tensor, inside: torch.Tensor | None, room: torch.Tensor) -> None:
        """Keep `new`, where inside; blocks of which nothing lies inside keep every bit. `new` and `room`, of
        its size, are spoilt."""
        if inside is not None:
            new = torch.where(inside, new, self.read(room))
        if self.name == "exp_avg_sq":
            new.sqrt_()
        rows = new.view(-1, self.block)
        scales = rows.abs().amax(1).div_(LARGEST[self.name]).clamp_(min=1e-30)  # above 0, whatever the block
        rows.div_(scales[:, None])
        codes = rows.to(FORMAT).view(DTYPE) if self.name == "exp_avg" else _root_codes(rows)
        if inside is not None:
            changed = inside.view(-1, self.block).any(1)
            scales = torch.where(changed, scales, self.scales)
            codes = torch.where(changed[:, None], codes, self.codes.reshape(-1, self.block))
        self.scales.copy_(scales)
        self.codes.copy_(codes.view(self.codes.shape))


def _root_codes(x: torch.Tensor) -> torch.Tensor:
    """The nearest codes of numbers from 0 to LARGEST; only 0 is 0, so that no step divides by it."""
    codes = ((x.view(torch.int32) + (1 << CUT - 1)) >> CUT).sub_(LOWEST).clamp_(1, 255)
    return codes.mul_(x > 0).to(DTYPE)

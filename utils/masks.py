"""Saliency masks: their file format, their checks, and the masked optimizer step.

File (torch.save of plain types and tensors, loads with `weights_only=True`):

    {"format": FORMAT,
     "weight": {parameter name: uint8 (ceil(n/8),)},    one bit per weight, the first in the highest bit
     "shape": {parameter name: [...]}, "salient": {parameter name: count},
     "part", "kind", "saliency", "fisher", "threshold", "ans_only", "released" {switch: value},
     "model" {name, fingerprint}, "data" {set: fingerprint}}

A mask names the weights that the forget step may change. A parameter that is not named is outside the mask.
Files of the paper's released code, {"weight": {name: bool tensor}} with transformers 4 names, load too.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.adapters.stored import lineage
from utils.data import Sample, fingerprint
from utils.families import FAMILIES, today
from utils.loop.shards import local, span
from utils.reading.model_files import local_folder, weight_files
from utils.released import MASK_NAMES, PAPER, Released
from utils.run.jsonl import parse

FORMAT = "mmunlearner-mask-1"


class MaskError(ValueError):
    """A mask that cannot be applied; the message says why and what to do."""


def pack(mask: torch.Tensor) -> torch.Tensor:
    """bool tensor of any shape -> uint8 (ceil(n/8),)."""
    return torch.from_numpy(np.packbits(mask.flatten().cpu().numpy()))


def unpack(bits: torch.Tensor, shape: torch.Size | list[int]) -> torch.Tensor:
    """Inverse of `pack`: a bool tensor, on the device of `bits`."""
    size = int(np.prod(shape))
    if bits.device.type == "cpu":
        flat = torch.from_numpy(np.unpackbits(bits.numpy(), count=size)).view(torch.bool)
    else:
        places = torch.arange(7, -1, -1, device=bits.device, dtype=torch.uint8)
        flat = ((bits[:, None] >> places) & 1).flatten()[:size].bool()
    return flat.view(tuple(shape))


def repack(bits: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """The packed mask of the weights [first, last) of a packed mask: they need not begin at a byte."""
    start = first // 8
    part = bits[start : -(-last // 8)]
    return pack(unpack(part, [last - 8 * start])[first % 8 :]).to(bits.device) if last > first else bits[:0]


# ---------------------------------------------------------------- the mask in memory
@dataclass
class Mask:
    """bits and shape per parameter name; `about` is what the file says of its origin; `rules`, how a forget
    step uses the mask: its clip, unlisted and masked_weights; `closed`, parameters of which nothing is
    salient, in no process's share."""

    bits: dict[str, torch.Tensor]
    shapes: dict[str, list[int]]
    about: dict[str, Any] = field(default_factory=dict)
    rules: Released = PAPER
    closed: frozenset[str] | None = None

    def __post_init__(self):
        if self.closed is None:
            self.closed = frozenset(name for name, bits in self.bits.items() if not bits.any())

    def count(self) -> tuple[int, int]:
        """(salient weights, weights that the mask names)."""
        salient = sum(int(np.unpackbits(b.cpu().numpy()).sum()) for b in self.bits.values())
        return salient, sum(int(np.prod(shape)) for shape in self.shapes.values())

    def only(self, names: Iterable[str]) -> Mask:
        """The mask of those of `names` of which something is salient."""
        bits = {name: self.bits[name] for name in names if name in self.bits and self.bits[name].any()}
        return replace(self, bits=bits, shapes={name: self.shapes[name] for name in bits})

    def of(self, name: str) -> torch.Tensor | None:
        """The bool mask of one parameter, None if it is outside."""
        return unpack(self.bits[name], self.shapes[name]) if name in self.bits else None

    def to(self, device) -> Mask:
        return replace(self, bits={name: bits.to(device) for name, bits in self.bits.items()})

    def shard(self, parameters: Mapping[str, torch.Tensor]) -> Mask:
        """The mask of what this process holds of each parameter; all of it where nothing is cut."""
        bits = {name: repack(bits, *span(parameters[name])) for name, bits in self.bits.items()}
        shapes = {name: list(local(parameters[name]).shape) for name in self.bits}
        return replace(self, bits=bits, shapes=shapes)

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        temporary = path.with_name(f".{path.name}.part")
        torch.save({"format": FORMAT, "weight": self.bits, "shape": self.shapes, **self.about}, temporary)
        temporary.replace(path)

    @classmethod
    def load(cls, path: str, model_type: str, rules: Released = PAPER) -> Mask:
        """Read either format; with rules.mask_names "released" only the parameters that the released code
        would use.

        Raises MaskError for a file that is no mask, or not a whole one, or whose names are unknown for this
        kind of model.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as why:  # torch raises whatever the pickle or zip reader met; all mean the same here
            first = (str(why).splitlines() or [type(why).__name__])[0]  # an empty file has no words
            raise MaskError(f"{path} is not a mask file: {first}") from why
        if not isinstance(content, dict) or not isinstance(content.get("weight"), dict):
            raise MaskError(f"{path} is not a mask file: it holds no 'weight'")
        weight = content.pop("weight")
        if strange := [name for name in weight if not isinstance(name, str)]:
            raise MaskError(f"{path} is not a mask file: {strange[0]!r} is no parameter's name")
        if rules.mask_names == "released":
            kept = [name for name in weight if any(word in name for word in MASK_NAMES)]
            weight = {name: weight[name] for name in kept}
        if content.pop("format", None) == FORMAT:
            shapes = content.pop("shape", None)
            model = content.get("model") or {"name": "", "fingerprint": ""}
            if not all(isinstance(part, dict) for part in (shapes, model, content.get("data", {}))) or not (
                {"name", "fingerprint"} <= model.keys()
            ):
                raise MaskError(f"{path} is not a mask file: what it says of itself cannot be read")
            for name, bits in weight.items():
                _check_packed(f"{path}: {name}", bits, shapes.get(name))
            return cls(weight, shapes, content, rules)
        if model_type not in FAMILIES:
            raise MaskError(
                f"{path} is a mask of the released code, whose names are known for {', '.join(FAMILIES)},"
                f" not for {model_type}"
            )
        # released format; its parameters without gradient carry the integer 0: outside the mask
        weight = {today(name, model_type): m for name, m in weight.items() if isinstance(m, torch.Tensor)}
        for name, m in weight.items():
            if m.dtype is not torch.bool and not ((m == 0) | (m == 1)).all():
                raise MaskError(f"{path}: {name} holds values other than 0 and 1")
        bits = {name: pack(m.bool()) for name, m in weight.items()}
        return cls(bits, {name: list(m.shape) for name, m in weight.items()}, {"kind": "released"}, rules)

    def check(self, shapes: dict[str, list[int]]) -> None:
        """Raises MaskError unless every name and shape is the model's and at least one weight is salient.

        shapes: {parameter name: shape} of the model.
        """
        strange = [name for name in self.bits if name not in shapes]
        if strange:
            raise MaskError(
                f"it names {len(strange)} of {len(self.bits)} parameters that the model does not have,"
                f" e.g. {strange[0]}"
            )
        wrong = [name for name in self.bits if list(self.shapes[name]) != list(shapes[name])]
        if wrong:
            name = wrong[0]
            raise MaskError(
                f"{name} has shape {list(self.shapes[name])} in the mask and {shapes[name]} in the model"
            )
        if self.count()[0] == 0:
            raise MaskError("it lets no weight change: forgetting would silently do nothing")

    def check_origin(self, model_name: str) -> None:
        """Raises MaskError where the mask says that it was made for other weights than this folder's."""
        made_for, folder = self.about.get("model"), local_folder(model_name)
        if made_for and folder and made_for["fingerprint"] != model_fingerprint(folder):
            raise MaskError(f"it was made for other weights ({made_for['name']}) than {model_name}")

    def fingerprint(self) -> str:
        """16 hex digits that change with any bit, name or shape."""
        digest = hashlib.sha256()
        for name, bits in sorted(self.bits.items()):
            digest.update(f"{name} {self.shapes[name]}".encode())
            digest.update(bits.numpy())
        return digest.hexdigest()[:16]

    def is_for(self, forget: list[Sample]) -> bool:
        """False where the mask says that it was made to forget something else: another ratio, another
        benchmark, other rows."""
        return self.about.get("data", {}).get("forget") in (None, fingerprint(forget))


def _check_packed(name: str, bits: object, shape: object) -> None:
    """Raises MaskError unless they are the packed bits of a tensor of this shape, as `pack` makes them."""
    if not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise MaskError(f"{name} has no shape in the file")
    size = int(np.prod(shape))
    if not isinstance(bits, torch.Tensor) or bits.dtype is not torch.uint8 or bits.dim() != 1:
        raise MaskError(f"{name} is not packed into bytes")
    if len(bits) != -(-size // 8):
        raise MaskError(f"{name} has {len(bits)} bytes for {size} weights")
    if size % 8 and int(bits[-1]) & ((1 << (8 - size % 8)) - 1):
        raise MaskError(f"{name} has bits behind its last weight")


# ---------------------------------------------------------------- parameters in pieces
PIECE = {"cpu": 1 << 20, "cuda": 1 << 26}  # weights at a time
INTEGER = {4: torch.int32, 2: torch.int16}  # by bytes of a number


class Piece:
    """A slice of a parameter, and of all that has its shape; without bounds the whole."""

    def __init__(self, shape: torch.Size, start: int | None = None, stop: int | None = None):
        self.shape, self.start, self.stop = shape, start, stop

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach() if self.start is None else tensor.detach().view(-1)[self.start : self.stop]

    def mask(self, bits: torch.Tensor) -> torch.Tensor:
        """The slice of a packed mask; pieces begin at whole bytes."""
        if self.start is None:
            return unpack(bits, self.shape)
        return unpack(bits[self.start // 8 : -(-self.stop // 8)], [self.stop - self.start])


def pieces(p: torch.Tensor, gradient: torch.Tensor, unit: int = 1) -> Iterator[Piece]:
    """A parameter, or a process's share of it, in pieces of whole units; whole where its memory, or its
    gradient's, is in another order than its shape."""
    if not (p.is_contiguous() and gradient.is_contiguous()):
        yield Piece(p.shape)
        return
    unit = math.lcm(8, unit)  # a piece begins at a whole byte of a mask
    size = max(1, PIECE.get(p.device.type, PIECE["cuda"]) // unit) * unit
    for start in range(0, p.numel(), size):
        yield Piece(p.shape, start, min(p.numel(), start + size))


def every_bit(inside: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Whole numbers of the width of `like`'s: all bits set inside, none outside."""
    return inside.view(torch.int8).to(INTEGER[like.element_size()]).neg_()


# ---------------------------------------------------------------- masked gradients
@torch.no_grad()
def mask_gradients(named_parameters: dict[str, torch.nn.Parameter], mask: Mask) -> None:
    """grad <- mask ⊙ grad; no gradient at all for a parameter of which nothing is salient.

    As released (`mask.rules`): unlisted parameters keep theirs; what drifts needs a gradient, if of zeros.
    """
    for name, parameter in named_parameters.items():
        if parameter.grad is None or (name not in mask.bits and mask.rules.unlisted == "train"):
            continue
        if name in mask.bits and name not in mask.closed:
            gradient = local(parameter.grad)
            for piece in pieces(local(parameter), gradient):
                part = piece(gradient)
                bits = every_bit(piece.mask(mask.bits[name]), part)
                part.view(bits.dtype).bitwise_and_(bits)
        elif mask.rules.masked_weights == "drift":
            parameter.grad.zero_()
        else:
            parameter.grad = None


# ---------------------------------------------------------------- which model a mask belongs to
def model_fingerprint(folder: Path) -> str:
    """16 hex digits from the weight files, an adapter's and its base's: their headers, sizes and a sample of
    their bytes (a 15 GB model takes a second)."""
    digest = hashlib.sha256()
    config = Path(lineage(str(folder))[-1], "config.json")
    kind = parse(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else None
    digest.update(str(kind).encode())
    for path in weight_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for k in range(64):
                file.seek(size * k // 64)
                digest.update(file.read(1 << 14))
    return digest.hexdigest()[:16]

"""The Fisher pass: squared gradients summed while backward runs, and the masks made of them.

    S(D)[w] = mean over batches b of D of ( ∂ CE(b) / ∂w )²
    m[w]    = 1  where  (S(forget)[w] + ε) / (S(preserve)[w] + ε) ≥ threshold,  ε = 1e-15

S is the diagonal empirical Fisher information at the vanilla weights; CE is the mean over answer tokens.
Huang et al. 2024 (SFR-on, arXiv 2409.19732), Huo et al. 2025 (MMUnlearner, arXiv 2502.11051). Not in half
precision: below a gradient of about 1.7e-4 an fp16 square is 0, and most of a mask would be decided by
underflow (--fisher_dtype fp16, as released, shows it).
"""

from __future__ import annotations

import math
import shutil
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from data_process.coverage import coverage, heat_map, print_coverage
from utils import checkpoint, checks, models
from utils.data import Sample
from utils.losses import token_nll
from utils.released import MASK_SWITCHES

if TYPE_CHECKING:
    import torch

    from utils.collate import Collator

EPS = 1e-15


class SquaredGradients:
    """Accumulates squared gradients of `parameters` as backward produces them, and frees each gradient at
    once.

    A full set of gradients never exists: a hook takes each one when it is complete. sums: {name: tensor} on
    `device`, in `dtype`.
    """

    def __init__(
        self, parameters: dict[str, torch.nn.Parameter], device: torch.device, dtype: torch.dtype | None
    ):
        import torch

        self.sums = {name: torch.zeros(p.shape, dtype=dtype, device=device) for name, p in parameters.items()}
        self.batches = 0
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._hook(name)) for name, p in parameters.items()
        ]

    def _hook(self, name: str):
        total = self.sums[name]

        def take(parameter: torch.nn.Parameter) -> None:
            gradient = parameter.grad.to(device=total.device, dtype=total.dtype)
            total.add_(gradient.square_())  # in place: the gradient goes anyway
            parameter.grad = None

        return take

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


@dataclass
class Plan:
    """One pass: which samples, and whose gradients they feed."""

    name: str
    samples: list[Sample]
    parameters: dict[str, torch.nn.Parameter]


def fisher_pass(
    model,
    collator: Collator,
    plans: Sequence[Plan],
    accelerator,
    batch_size: int,
    per_sample: bool,
    device: torch.device,
    dtype: torch.dtype | None = None,
    mode: str = "eval",
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Sums of squared gradients over all plans of one set, and per parameter the number of batches they were
    summed over.

    Returns ({name: tensor of `dtype`, by default fp32}, {name: batches}); the saliency is their quotient.
    Every process takes its share of the batches and all get the same sums. Plans of one call add up: retain
    pictures and text knowledge are one preserve set for the language part, while the vision part sees only
    the pictures.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    from utils.collate import cut, one_pass

    parameters = {name: p for plan in plans for name, p in plan.parameters.items()}
    for p in model.parameters():
        p.requires_grad_(False)
    for p in parameters.values():
        p.requires_grad_(True)
    squares, counts = SquaredGradients(parameters, device, dtype), dict.fromkeys(parameters, 0)
    model.train(mode == "train")
    for module in model.modules():
        # a layer is checkpointed only while its own flag says "training"; what is inside stays in eval mode
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module.training = True
    size = 1 if per_sample else batch_size
    try:
        for plan in plans:
            for p in parameters.values():
                p.requires_grad_(False)
            for p in plan.parameters.values():
                p.requires_grad_(True)
            batches = cut(plan.samples, size)
            for name in plan.parameters:
                counts[name] += len(batches)
            mine = batches[accelerator.process_index :: accelerator.num_processes]
            for batch in one_pass(collator, mine, accelerator, plan.name):
                loss = token_nll(model, batch).mean()
                if not math.isfinite(loss.item()):
                    raise SystemExit(
                        f"error: the loss is {loss.item()} on {', '.join(batch.ids)}; no mask was written"
                    )
                loss.backward()
    finally:
        squares.close()
    if accelerator.num_processes > 1:
        squares.sums = {
            name: accelerator.reduce(s.to(accelerator.device)).to(device) for name, s in squares.sums.items()
        }
    return squares.sums, counts


def ratio_mask(
    forget: torch.Tensor, preserve: torch.Tensor, batches: tuple[int, int], threshold: float
) -> torch.Tensor:
    """The mask of one parameter from its two sums of squared gradients and their numbers of batches.

    A weight with no gradient on either side is not salient (0/0 would otherwise count as 1). Sums of 16 bits
    are there for masks as released: ε and 0/0 stay what that precision makes of them (0 and NaN, not salient,
    in fp16; 1, salient, in bf16).
    """
    import torch

    f, p = forget / batches[0], preserve / max(batches[1], 1)
    mask = (f + EPS) / (p + EPS) >= threshold
    return mask & ((f > 0) | (p > 0)) if forget.dtype is torch.float32 else mask


def ablation_mask(kind: str, forget: torch.Tensor, like: torch.Tensor, seed: str) -> torch.Tensor:
    """A mask of the same sparsity as `like`, parameter by parameter, that does not look at the preserve set.

    topk: where the forget set's squared gradients are largest; random: anywhere, by the seed. What
    MMUnlearner's ratio is worth shows against these.
    """
    import torch

    mask, number = torch.zeros(like.numel(), dtype=torch.bool), int(like.sum())
    if kind == "topk":
        mask[forget.flatten().topk(number).indices.cpu()] = True
    else:
        generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
        mask[torch.randperm(like.numel(), generator=generator)[:number]] = True
    return mask.view(like.shape)


# ---------------------------------------------------------------- the command, the same for every benchmark
def make_masks(args, data: dict[str, list[Sample]], prefix: str) -> None:
    """Load the vanilla model, run the passes, write `<prefix>_{language,vision,both}_mask.pt` and
    coverage.json.

    data: {"forget": pictures, "retain": pictures, "text": text questions about everybody}.
    """
    import torch
    from accelerate import Accelerator

    from utils.collate import Collator
    from utils.masks import model_fingerprint

    started, accelerator = time.monotonic(), Accelerator()
    checks.check_processes(accelerator)
    name = args.vanilla_dir or args.model_id
    processor = models.load_processor(name, args.model_id)
    model = models.load_model(name, args.dtype, args.attn).to(accelerator.device)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    part_of = models.part_of_parameters(model)
    every = dict(model.named_parameters())
    language = {n: p for n, p in every.items() if part_of[n] == "language"}
    manifest = checkpoint.manifest(args, data, accelerator) | {"vanilla": name}
    accelerator.print(
        f"model: {name} ({models.family_of(model).title}), {sum(p.numel() for p in every.values()):,} weights"
    )

    device = torch.device("cpu") if args.fisher_device == "cpu" else accelerator.device
    collator = Collator.of(args, processor, models.family_of(model))
    dtype = models.pick_dtype(args.released.fisher_dtype)
    torch.manual_seed(args.seed)  # for --fisher_mode train
    passes = partial(
        fisher_pass, model, collator, accelerator=accelerator, batch_size=args.batch_size, device=device,
        per_sample=args.fisher == "sample", dtype=dtype, mode=args.released.fisher_mode,
    )  # fmt: skip
    with models.autocast(args.dtype):
        forget, forget_batches = passes([Plan("forget pictures", data["forget"], every)])
        preserve, preserve_batches = passes(
            [Plan("retain pictures", data["retain"], every), Plan("text questions", data["text"], language)]
        )
    masks = {}
    for n in list(forget):  # one parameter after the other, its sums freed at once
        fisher, batches = forget.pop(n), (forget_batches[n], preserve_batches[n])
        masks[n] = ratio_mask(fisher, preserve.pop(n), batches, args.threshold)
        if args.mask_kind != "saliency":
            masks[n] = ablation_mask(args.mask_kind, fisher, masks[n], f"{args.seed}/{n}")
    about = {
        "kind": args.mask_kind,
        "fisher": args.fisher,
        "threshold": args.threshold,
        "ans_only": args.ans_only,
        "released": {name: getattr(args.released, name) for name in MASK_SWITCHES},
        "model": {"name": str(name), "fingerprint": model_fingerprint(models.weights_folder(name))},
        "data": {set_name: entry["fingerprint"] for set_name, entry in manifest["data"].items()},
    }
    if accelerator.is_main_process:
        write_masks(args.save_dir, prefix, masks, part_of, about, manifest | checkpoint.cost(started))
    accelerator.wait_for_everyone()


def write_masks(
    save_dir: str, prefix: str, masks: dict, part_of: dict[str, str], about: dict, manifest: dict
) -> None:
    """The three files, the coverage report on screen and in coverage.json, and run.json: all of them or
    none."""
    from utils.masks import Mask, pack

    partial_dir = checkpoint.partial_folder(save_dir)
    shutil.rmtree(partial_dir, ignore_errors=True)
    partial_dir.mkdir(parents=True)
    salient = {name: int(m.sum()) for name, m in masks.items()}
    for part in ("language", "vision", "both"):
        names = [n for n in masks if part in (part_of[n], "both")]
        mask = Mask(
            {n: pack(masks[n]) for n in names},
            {n: list(masks[n].shape) for n in names},
            about | {"part": part, "salient": {n: salient[n] for n in names}},
        )
        mask.save(partial_dir / f"{prefix}_{part}_mask.pt")
    sizes = {n: m.numel() for n, m in masks.items()}
    report = coverage(salient, sizes, part_of)
    checkpoint.write_json(partial_dir / "coverage.json", report)
    heat_map(salient, sizes, part_of, partial_dir / "coverage.png")
    checkpoint.write_json(partial_dir / "run.json", manifest)
    checkpoint.publish(partial_dir, save_dir)
    print_coverage(report)
    print(
        f"saved {save_dir}: "
        + ", ".join(f"{prefix}_{part}_mask.pt" for part in ("language", "vision", "both"))
    )

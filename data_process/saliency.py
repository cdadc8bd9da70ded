"""The Fisher pass: squared gradients summed while backward runs, and the masks made of them.

    S(D)[w] = mean over batches b of D of ( ∂ L(b) / ∂w )²
    m[w]    = 1  where  (S(forget)[w] + ε) / (S(preserve)[w] + ε) ≥ γ,  ε = 1e-15, γ the threshold

L is the mean over answer tokens of −log p (--saliency ce): S is the diagonal empirical Fisher information at
the vanilla weights. Or of log p − log(1 − p) (log_odds), whose gradient does not fade where p nears 1, or of
−log p of tokens drawn from the model (fisher: the true Fisher information). docs/methods.md derives them.
Huang et al. 2024 (SFR-on, arXiv 2409.19732), Huo et al. 2025 (MMUnlearner, arXiv 2502.11051).

Only the difference is kept, one fp32 number per weight: the rule is S(forget) − γ·S(preserve) ≥ (γ − 1)·ε.
Not in half precision: below a gradient of about 1.7e-4 an fp16 square is 0, and most of a mask would be
decided by underflow (--fisher_dtype fp16, as released, shows it).
"""

from __future__ import annotations

import math
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from data_process.coverage import coverage, heat_map, print_coverage
from utils import checkpoint, cli, families, models
from utils.data import Sample
from utils.loop import engines
from utils.losses import drawn_nll, token_log_odds, token_nll
from utils.reading import model_files
from utils.released import MASK_SWITCHES, ratio_mask
from utils.run import folders, screen
from utils.run.ending import DIVERGED

if TYPE_CHECKING:
    import torch

    from utils.collate import Batch, Collator

EPS = 1e-15
# p of a token from which CE's squared gradient, (1 − p)² times that of the log-odds, is less than 1e-4 of it
CERTAIN = 0.99
EMPTY = 0.02  # share of a part's weights below which its mask is nearly empty


class SquaredGradients:
    """Adds the squared gradients of `parameters` to `sums` as backward produces them, each times
    `scale[name]`, and frees each gradient at once.

    A full set of gradients never exists: a hook takes each one when it is complete. sums: {name: tensor of
    the parameter's shape}, cut as the parameter is. FSDP2 calls the hook with this process's share of the
    gradient, when it has averaged it over the processes.
    """

    def __init__(
        self,
        parameters: dict[str, torch.nn.Parameter],
        sums: dict[str, torch.Tensor],
        scale: dict[str, float],
    ):
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._hook(sums[name], scale[name]))
            for name, p in parameters.items()
        ]

    def _hook(self, total: torch.Tensor, scale: float):
        from utils.loop.shards import local

        total = local(total)

        def take(parameter: torch.nn.Parameter) -> None:
            gradient = local(parameter.grad).to(total.dtype)
            total.add_(gradient.square_(), alpha=scale)  # in place: the gradient goes anyway
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


def batch_counts(plans: Sequence[Plan], size: int) -> dict[str, int]:
    """Per parameter the number of batches that feed its sum."""
    from utils.loop.batches import cut

    counts: Counter[str] = Counter()
    for plan in plans:
        counts.update(dict.fromkeys(plan.parameters, len(cut(plan.samples, size))))
    return counts


def shares(batches: list[list[Sample]], accelerator) -> list[tuple[list[Sample], bool]]:
    """What this process takes of each batch, and whether it counts; by default every n-th batch, whole.

    Under FSDP2 all processes work on every batch, since each holds a part of the weights: each takes a share
    of its samples, or, where these are fewer than the processes, one that does not count.
    """
    rank, processes = accelerator.process_index, accelerator.num_processes
    if not accelerator.is_fsdp2:
        return [(batch, True) for batch in batches[rank::processes]]
    return [(batch[rank::processes] or batch[:1], rank < len(batch)) for batch in batches]


def batch_mean(values: torch.Tensor, counts: bool, accelerator) -> tuple[torch.Tensor, float]:
    """What backward needs for the gradient of a batch's mean over its terms, and that mean.

    values: the terms of this process, (N,). FSDP2 averages the gradients of the processes.
    """
    import torch

    if not accelerator.is_fsdp2:
        loss = values.mean()
        return loss, loss.item()
    mine = values.sum() * float(counts)
    number = mine.new_tensor(counts * values.numel(), dtype=torch.float64)
    total, number = accelerator.reduce(torch.stack([mine.detach().double(), number])).tolist()
    return mine * (accelerator.num_processes / number), total / number


def grand_totals(sums: dict[str, torch.Tensor], accelerator) -> dict[str, float]:
    """Each parameter's sum over its weights and over all processes."""
    import torch

    from utils.loop.shards import local

    found = torch.stack([local(total).sum().double() for total in sums.values()])
    found = accelerator.reduce(found) if accelerator.num_processes > 1 else found
    return dict(zip(sums, found.tolist(), strict=True))


def whole_sum(total: torch.Tensor, accelerator) -> torch.Tensor:
    """A parameter's sum over all processes: each has summed its own batches or, under FSDP2, holds its share
    of the weights."""
    from utils.loop.shards import whole

    if accelerator.is_fsdp2:
        return whole(total)
    return accelerator.reduce(total) if accelerator.num_processes > 1 else total


def fisher_pass(
    model,
    collator: Collator,
    terms: Callable[[torch.nn.Module, Batch], torch.Tensor],
    plans: Sequence[Plan],
    sums: dict[str, torch.Tensor],
    scale: dict[str, float],
    accelerator,
    size: int,
    mode: str = "eval",
    seen: list[torch.Tensor] | None = None,
) -> None:
    """Add to `sums` the squared gradients of all plans' batches of `size` samples, times `scale`.

    terms: one per answer token, (N,); their mean is differentiated. They are appended to `seen`.

    Only weights that `sums` names get a gradient. Plans of one call add up: retain pictures and text
    knowledge are one preserve set for the language part, while the vision part sees only the pictures. Every
    process takes its share, so its sums are a part of the whole.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    from utils.loop.batches import cut, one_pass

    parameters = {n: p for plan in plans for n, p in plan.parameters.items() if n in sums}
    for p in parameters.values():
        p.requires_grad_(True)
    squares = SquaredGradients(parameters, sums, scale)
    model.train(mode == "train")
    for module in model.modules():
        # a layer is checkpointed only while its own flag says "training"; what is inside stays in eval mode
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module.training = True
    try:
        for plan in plans:
            for p in model.parameters():
                p.requires_grad_(False)
            inside = [p for n, p in plan.parameters.items() if n in sums]
            for p in inside:
                p.requires_grad_(True)
            batches = cut(plan.samples, size) if inside else []
            mine = shares(batches, accelerator)
            loaded = one_pass(collator, [share for share, _ in mine], accelerator, plan.name)
            for batch, (_, counts) in zip(loaded, mine):
                values = terms(model, batch)
                if seen is not None and counts:
                    seen.append(values.detach())
                loss, mean = batch_mean(values, counts, accelerator)
                if not math.isfinite(mean):
                    cli.fail(f"the loss is {mean} on {', '.join(batch.ids)}; no mask was written", DIVERGED)
                if loss.requires_grad:  # text alone reaches no cross-attention of Llama-3.2-Vision
                    loss.backward()
    finally:
        squares.close()


def difference_mask(difference: torch.Tensor, threshold: float) -> torch.Tensor:
    """The mask of one parameter from S(forget) − γ·S(preserve) in fp32, γ the threshold.

    Exactly 0 is a weight with no gradient on either side: not salient. (So is an exact tie, which a single
    number cannot tell from it.)
    """
    return (difference >= (threshold - 1) * EPS) & (difference != 0)


def ablation_mask(kind: str, forget: torch.Tensor | None, like: torch.Tensor, seed: str) -> torch.Tensor:
    """A mask of the same sparsity as `like`, parameter by parameter, that does not look at the preserve set.

    topk: where the forget set's squared gradients are largest; random: anywhere, by the seed, and `forget` is
    not needed. What MMUnlearner's ratio is worth shows against these.
    """
    import torch

    mask, number = torch.zeros(like.numel(), dtype=torch.bool), int(like.sum())
    if kind == "topk":
        mask[forget.flatten().topk(number).indices.cpu()] = True
    else:
        generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
        mask[torch.randperm(like.numel(), generator=generator)[:number]] = True
    return mask.view(like.shape)


# ---------------------------------------------------------------- parameters in blocks
def blocks(parameters: dict[str, torch.nn.Parameter], number: int) -> list[dict[str, torch.nn.Parameter]]:
    """The parameters in at most `number` groups of about the same size.

    A group is consecutive, so that backward ends early in those that lie behind.
    """
    total, before = sum(p.numel() for p in parameters.values()), 0
    found: dict[int, dict[str, torch.nn.Parameter]] = {}
    for name, p in parameters.items():
        middle = before + p.numel() / 2
        found.setdefault(int(number * middle / total), {})[name] = p
        before += p.numel()
    return list(found.values())


def block_masks(
    block: dict[str, torch.nn.Parameter],
    forget: list[Plan],
    preserve: list[Plan],
    passes: Callable[..., None],
    seen: list[torch.Tensor],
    accelerator,
    args,
) -> Iterator[tuple[str, torch.Tensor, tuple[float, ...]]]:
    """The passes of one block and its masks, one parameter after the other, its sums freed at once; with each
    the sums of S(forget) and S(preserve) over the parameter's weights, none where these have 16 bits.

    One buffer holds S(forget) and loses γ·S(preserve). A second one is there for what needs S(forget) itself:
    --mask_kind topk, whose density is the saliency mask's, and sums of 16 bits as released. seen: gets the
    terms of the forget pass.
    """
    import torch

    size = 1 if args.fisher == "sample" else args.batch_size
    dtype = models.pick_dtype(args.released.fisher_dtype)
    zeros = lambda: {n: torch.zeros_like(p, dtype=dtype) for n, p in block.items()}
    one, kept, saliency = dict.fromkeys(block, 1.0), {}, dict.fromkeys(block, ())
    counts = batch_counts(forget, size), batch_counts(preserve, size)
    n_forget, n_preserve = ({n: max(count[n], 1) for n in block} for count in counts)
    sums = zeros()
    if dtype is torch.float32:
        passes(forget, sums, {n: 1 / n_forget[n] for n in block}, size=size, seen=seen)
        if args.mask_kind == "topk":
            kept = {n: total.clone() for n, total in sums.items()}
        forgotten = grand_totals(sums, accelerator)
        passes(preserve, sums, {n: -args.threshold / n_preserve[n] for n in block}, size=size)
        left = grand_totals(sums, accelerator)
        saliency = {n: (f, max(0.0, (f - left[n]) / args.threshold)) for n, f in forgotten.items()}
    else:
        passes(forget, sums, one, size=size, seen=seen)
        kept, sums = sums, zeros()
        passes(preserve, sums, one, size=size)
    for n in block:
        total = whole_sum(sums.pop(n), accelerator)
        of_forget = whole_sum(kept.pop(n), accelerator) if kept else None
        if dtype is torch.float32:
            mask = difference_mask(total, args.threshold)
        else:
            mask = ratio_mask(of_forget / n_forget[n], total / n_preserve[n], EPS, args.threshold)
        if args.mask_kind != "saliency":
            mask = ablation_mask(args.mask_kind, of_forget, mask, f"{args.seed}/{n}")
        yield n, mask, saliency[n]


@dataclass
class PackedMask:
    """One bit per weight (utils.masks.pack), so that masks on their way to the file take little room.
    saliency: the sums of S(forget) and of S(preserve) over the weights, if known."""

    bits: torch.Tensor
    shape: list[int]
    salient: int
    saliency: tuple[float, ...]


def masks_of(
    model, collator: Collator, data: dict[str, list[Sample]], accelerator, args
) -> tuple[dict[str, PackedMask], list[torch.Tensor]]:
    """The mask of every parameter, in the main process, and the terms of the forget pass, in each.

    data: {"forget": pictures, "retain": pictures, "text": text questions about everybody}.
    """
    import torch

    from utils.masks import pack

    every, part_of = dict(model.named_parameters()), families.part_of_parameters(model)
    language = {n: p for n, p in every.items() if part_of[n] == "language"}
    forget = [Plan("forget pictures", data["forget"], every)]
    texts = Plan("text questions", data["text"], language)
    preserve = [Plan("retain pictures", data["retain"], every), texts]
    terms = {"ce": token_nll, "log_odds": token_log_odds, "fisher": partial(drawn_nll, seed=args.seed)}
    passes = partial(
        fisher_pass, model, collator, terms[args.saliency], accelerator=accelerator,
        mode=args.released.fisher_mode,
    )  # fmt: skip
    masks: dict[str, PackedMask] = {}
    for block in blocks(every, args.blocks):
        torch.manual_seed(args.seed)  # for --fisher_mode train
        seen: list[torch.Tensor] = []
        for n, mask, sums in block_masks(block, forget, preserve, passes, seen, accelerator, args):
            if accelerator.is_main_process:
                masks[n] = PackedMask(pack(mask), list(mask.shape), int(mask.sum()), sums)
    return masks, seen


# ---------------------------------------------------------------- what a mask is worth
def certainty(saliency: str, seen: list[torch.Tensor], accelerator) -> dict[str, float] | None:
    """How sure the model is of the forget answers' tokens, from the terms of that pass, for run.json.

    {"tokens", "median_p", "above": share of tokens with p over CERTAIN}; None where tokens were drawn.
    """
    import torch
    from accelerate.utils import gather_object

    if saliency == "fisher":
        return None
    p = [torch.exp(-terms) if saliency == "ce" else torch.sigmoid(terms) for terms in seen]
    p = torch.tensor(gather_object([value for values in p for value in values.tolist()]))
    above = float((p > CERTAIN).float().mean())
    return {"tokens": len(p), "median_p": round(float(p.median()), 6), "above": round(above, 4)}


def warn(saliency: str, answers: dict[str, float] | None, report: dict[str, dict[str, dict]]) -> None:
    """Say so where CE's gradients are errors left over, or a part of the mask is nearly empty."""
    if saliency == "ce" and answers["median_p"] > CERTAIN:
        print(
            f"note: half of the forget answers' tokens have p above {answers['median_p']:.4f}. CE's gradient"
            " has the factor 1 − p, so that its squares compare errors left over, not importance: try"
            " --saliency log_odds (docs/methods.md)"
        )
    for part, groups in report.items():
        share = groups["all"]["share"]
        if share < EMPTY:
            print(
                f"note: only {100 * share:.2f} % of the {part} part's weights are salient: forgetting hardly"
                f" changes it; try {'--saliency log_odds or ' if saliency == 'ce' else ''}a lower --threshold"
            )


# ---------------------------------------------------------------- the command, the same for every benchmark
def make_masks(args, data: dict[str, list[Sample]], prefix: str) -> None:
    """`_make_masks`, while nobody else writes the folder."""
    with folders.alone(args.save_dir) if screen.main_process() else nullcontext():
        _make_masks(args, data, prefix)


def _make_masks(args, data: dict[str, list[Sample]], prefix: str) -> None:
    """Load the vanilla model, run the passes, write `<prefix>_{language,vision,both}_mask.pt` and
    coverage.json.

    data: {"forget": pictures, "retain": pictures, "text": text questions about everybody}.
    """
    import torch

    from utils.collate import Collator
    from utils.masks import model_fingerprint

    started, accelerator = time.monotonic(), engines.accelerator()
    name = args.vanilla_dir or args.model_id
    model = models.load_model(name, args.dtype, args.attn, args.processor)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if accelerator.is_fsdp2:  # accelerate wants an optimizer with the model; it makes no step
        model, _ = engines.prepare(accelerator, model, torch.optim.SGD(model.parameters()))
    else:
        model.to(accelerator.device)
    part_of = families.part_of_parameters(model)
    every = dict(model.named_parameters())
    manifest = checkpoint.manifest(args, data, accelerator) | {"vanilla": name}
    cut = f", cut over {accelerator.num_processes} processes" if accelerator.is_fsdp2 else ""
    title, size = families.family_of(model).title, sum(p.numel() for p in every.values())
    accelerator.print(f"model: {name} ({title}), {size:,} weights{cut}")

    collator = Collator.of(args, args.processor, families.family_of(model))
    with models.autocast(args.dtype):
        masks, seen = masks_of(model, collator, data, accelerator, args)
    manifest["answers"] = answers = certainty(args.saliency, seen, accelerator)
    about = {
        "kind": args.mask_kind,
        "saliency": args.saliency,
        "fisher": args.fisher,
        "threshold": args.threshold,
        "ans_only": args.ans_only,
        "released": {name: getattr(args.released, name) for name in MASK_SWITCHES},
        "model": {"name": str(name), "fingerprint": model_fingerprint(model_files.weights_folder(name))},
        "data": {set_name: entry["fingerprint"] for set_name, entry in manifest["data"].items()},
    }
    if accelerator.is_main_process:
        report = write_masks(
            args.save_dir, prefix, masks, part_of, about, manifest | checkpoint.cost(started)
        )
        warn(args.saliency, answers, report)
    accelerator.wait_for_everyone()


def write_masks(
    save_dir: str,
    prefix: str,
    masks: dict[str, PackedMask],
    part_of: dict[str, str],
    about: dict,
    manifest: dict,
) -> dict[str, dict[str, dict]]:
    """The three files, the coverage report on screen and in coverage.json, and run.json: all of them or
    none. Returns the coverage."""
    from utils.masks import Mask

    partial_dir = folders.partial_folder(save_dir)
    shutil.rmtree(partial_dir, ignore_errors=True)
    partial_dir.mkdir(parents=True)
    salient = {name: m.salient for name, m in masks.items()}
    for part in ("language", "vision", "both"):
        names = [n for n in masks if part in (part_of[n], "both")]
        mask = Mask(
            {n: masks[n].bits for n in names},
            {n: masks[n].shape for n in names},
            about | {"part": part, "salient": {n: salient[n] for n in names}},
        )
        mask.save(partial_dir / f"{prefix}_{part}_mask.pt")
    sizes = {n: math.prod(m.shape) for n, m in masks.items()}
    report = coverage(salient, sizes, part_of, {n: m.saliency for n, m in masks.items()})
    checkpoint.write_json(partial_dir / "coverage.json", report)
    heat_map(salient, sizes, part_of, partial_dir / "coverage.png")
    checkpoint.write_json(partial_dir / "run.json", manifest)
    folders.publish(partial_dir, save_dir)
    print_coverage(report)
    print(
        f"saved {save_dir}: "
        + ", ".join(f"{prefix}_{part}_mask.pt" for part in ("language", "vision", "both"))
    )
    return report

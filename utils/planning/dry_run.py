"""--dry_run: what a run will do and take, printed before any weight is loaded; and whether it can fit at all.

Reads the configuration (a model without memory, on the meta device), the processor and the data; the
arithmetic is utils/planning/needs.py.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from utils import families
from utils.data import Sample
from utils.loop import engines
from utils.loop.batches import Stream, cut
from utils.planning import needs
from utils.planning.needs import Layers, Lengths, Memory, Model, Setting, Spread
from utils.reading import weightless
from utils.run.screen import size
from utils.training import Phase, alternate, once

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
CARDS = (24, 48, 80)  # GiB
FREE = 0.92  # of a card's memory; the rest goes to the driver and to gaps


# ---------------------------------------------------------------- model, data and flags as numbers
def read_model(model: PreTrainedModel, rank: int = 0, parts: str = "both") -> Model:
    """Of a model on the meta device. rank: LoRA's, 0 without it."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    part_of, weights = families.part_of_parameters(model), Counter()
    for name, p in model.named_parameters():
        weights[part_of[name]] += p.numel()
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    modules, adapter = dict(model.named_modules()), 0
    if rank:
        targets = [modules[name] for name in families.lora_targets(model, parts)]
        adapter = rank * sum(m.in_features + m.out_features for m in targets)
    return Model(
        weights=dict(weights),
        layers={
            "language": read_layers(model.config.get_text_config(), text=True),
            "vision": read_layers(model.config.vision_config),
        },
        vocabulary=len(model.get_output_embeddings().weight),
        unit=max(sizes, default=0),
        root=max(0, weights.total() - sum(sizes)),
        largest=max(p.numel() for p in model.parameters()),
        adapter=adapter,
    )


def read_layers(config: PreTrainedConfig, text: bool = False) -> Layers:
    """Families call the same fields by different names."""
    fields = config.to_dict()
    field = lambda *names: next(fields[name] for name in names if fields.get(name) is not None)
    width, heads = (
        field("embed_dim", "hidden_size"),
        field("num_heads", "attention_heads", "num_attention_heads"),
    )
    llama = text or fields.get("hidden_act") == "silu"  # Pixtral's and Qwen2.5-VL's towers are built like it
    return Layers(
        number=field("depth", "num_hidden_layers") + fields.get("num_global_layers", 0),
        width=width,
        heads=heads * (fields.get("head_dim") or width // heads),
        mlp=fields.get("intermediate_size") or int(width * fields["mlp_ratio"]),
        gated=llama,
        rms=llama,
    )


def read_lengths(processor: ProcessorMixin, config: PreTrainedConfig, samples: list[Sample]) -> Lengths:
    """Of the longest of all samples; its picture is prepared, so that its patches can be counted."""
    from utils.collate import Chat, PromptLengths, encode

    chat, vision = Chat(processor), config.vision_config
    of, tokens, largest = PromptLengths(processor, chat), Counter(), None
    text = lambda words: len(processor.tokenizer(words, add_special_tokens=False)["input_ids"])
    for s in samples:
        picture = of.picture(s.picture) if s.picture else 0
        answer = text(chat.answer(s.answer))
        length = of.text(chat.prompt(s.question, int(s.picture is not None))) + picture + answer
        tokens = tokens | Counter(all=length, answer=answer)  # the larger of each
        if s.picture and (largest is None or picture > largest[0]):
            largest = picture, s.picture
    patches = 0
    if largest:
        pixels = encode(processor, [of.prompt], [[largest[1].load()]], "right")["pixel_values"]
        frames = config.vision_config.to_dict().get("temporal_patch_size", 1)
        patches = pixels.numel() // (3 * vision.patch_size**2 * frames)
    return Lengths(tokens["all"], tokens["answer"], patches)


def read_setting(args) -> Setting:
    """How --dtype and its like keep weights; auto is planned as on a GPU."""
    import torch

    gpu = torch.cuda.is_available() or args.dtype == "auto"
    common = {"batch": args.batch_size, "checkpointing": args.gradient_checkpointing}
    common["device"] = "cuda" if gpu else "cpu"
    if args.task == "masks":
        batch = 1 if args.fisher == "sample" else args.batch_size
        return Setting("bf16" if args.dtype == "auto" else args.dtype, **common | {"batch": batch})
    precision = args.dtype
    if precision == "auto":
        precision = "bf16" if args.lora else "mixed"
    nearest = args.released.rounding == "nearest" and precision == "bf16"
    return Setting(
        precision="nearest" if nearest else precision,
        moments="bf16" if nearest else args.moments,
        lora=() if not args.lora else families.PARTS if args.lora_parts == "both" else (args.lora_parts,),
        masked=args.mask.count()[1] if args.mask else 0,
        quantized=args.quantize == "4bit",
        accumulates=args.gradient_accumulation_steps > 1,
        **common,
    )


def spread() -> Spread:
    """What `accelerate launch` has chosen."""
    return Spread(engines.engine().kind, int(os.environ.get("WORLD_SIZE", "1")))


def spreads() -> dict[str, Spread]:
    """{name: Spread} of the files of configs/, one process first."""
    import yaml

    found = {"one process": Spread()}
    for file in sorted(CONFIGS.glob("*.yaml")):
        says = yaml.safe_load(file.read_text(encoding="utf-8"))
        kind = {"FSDP": "fsdp2", "MULTI_GPU": "ddp"}.get(says["distributed_type"])
        if kind and says["num_processes"] > 1:
            found[f"configs/{file.name}"] = Spread(kind, says["num_processes"])
    return dict(sorted(found.items(), key=lambda item: item[1].processes))


# ---------------------------------------------------------------- the plan
class Plan:
    """Of one command on one kind of model. lengths: None where only what no batch changes is asked."""

    def __init__(self, args, data: dict[str, list[Sample]], lengths: bool = True):
        self.args, self.data = args, data
        name = args.vanilla_dir or args.model_id
        empty = weightless.empty_model(name)
        self.how, self.title = read_setting(args), families.family_of(empty).title
        rank = args.lora_r if self.how.lora else 0
        self.model = read_model(empty, rank, args.lora_parts if rank else "both")
        self.targets = len(families.lora_targets(empty, args.lora_parts)) if rank else 0
        if args.released.kl_positions == "all":
            self.how = replace(self.how, beside=self.model.all)
        self.lengths = Lengths(0, 0, 0)
        if lengths:
            every = [sample for samples in data.values() for sample in samples]
            self.lengths = read_lengths(args.processor, empty.config, every)

    def memory(self, over: Spread) -> Memory:
        if self.args.task == "training":
            return needs.training(self.model, self.how, self.lengths, over)
        two = self.args.mask_kind == "topk" or self.args.released.fisher_dtype != "fp32"
        blocks, sums = self.args.blocks, 2 if two else 1
        return needs.saliency(self.model, self.how, self.lengths, over, blocks, sums)

    def steps(self, over: Spread) -> str:
        """Optimizer steps per kind; of masks the batches of their passes."""
        args, data = self.args, self.data
        if args.task == "masks":
            sets = ", ".join(f"{len(cut(of, self.how.batch))} {name}" for name, of in data.items())
            return f"batches: {sets}" + (f"; {args.blocks} times, for --blocks" if args.blocks > 1 else "")
        size = args.batch_size * over.processes * args.gradient_accumulation_steps
        phases = {name: Phase(name, samples, loss=None) for name, samples in data.items()}
        batches = {name: Stream(of, size, "", False).batches_per_pass for name, of in data.items()}
        both = phases.keys() >= {"forget", "retain"}
        order = alternate(phases["forget"], phases["retain"], args) if both else once(*phases.values())
        epoch = [phase.name for phase in order.epoch(batches)]
        steps = Counter((epoch * args.num_epochs)[: args.max_steps or None])
        return (
            "steps: "
            + ", ".join(f"{steps[name]} {name}" for name in phases if steps[name])
            + f" ({args.num_epochs} x {len(epoch)}), {size} samples each"
        )

    # ------------------------------------------------------------ as text
    def lines(self) -> list[str]:
        """What --dry_run prints."""
        model, how, args, over = self.model, self.how, self.args, spread()
        billions = lambda n: f"{n / 1e9:.2f} B" if n >= 1e8 else f"{n / 1e6:.2f} M"
        trained = "none trained" if args.task == "masks" else "all trained"
        if how.lora:
            trained = f"frozen, and {billions(needs.adapters(model, how))} of LoRA on {self.targets} layers"
        parts = ", ".join(f"{part} {billions(n)}" for part, n in sorted(model.weights.items()))
        out = [
            "",
            f"plan ({self.title}; no weight was loaded)",
            self.steps(over),
            f"weights: {model.all:,} ({parts}), {trained}; {self._precision()}",
        ]
        if args.task == "training" and args.mask:
            salient, named = args.mask.count()
            out.append(f"mask: forget steps may change {salient:,} of {named:,} weights named")
        out.append(
            f"longest sample: {self.lengths.tokens} tokens, its answer {self.lengths.answer}, its picture"
            f" {self.lengths.patches} patches"
        )
        memory = self.memory(over)
        engine = engines.engine().title + (f" over {over.processes}" if over.processes > 1 else "")
        checkpointed = "with" if how.checkpointing else "without"
        out += [
            f"memory of each device ({engine}): {size(memory.peak)} at most",
            "  " + ", ".join(f"{name} {size(n)}" for name, n in parts_of(memory).items()),
            f"  activations are an estimate, of {how.batch} longest samples, {checkpointed} gradient"
            " checkpointing",
        ]
        out.append("disk: " + self._disk())
        return out + self._fits()

    def _precision(self) -> str:
        how, auto = self.how, "--dtype auto on a GPU: " if self.args.dtype == "auto" else ""
        kept = "bf16, rounded to the nearest" if how.precision == "nearest" else how.precision
        return auto + kept + (f", moments in {how.moments}" if self.args.task == "training" else "")

    def _disk(self) -> str:
        if self.args.task == "masks":
            return f"{size(2 * needs.MASK * self.model.all)} for three masks"
        name = self.args.save_dtype
        if name == "auto":
            name = "bf16" if self.how.precision == "nearest" else "fp32"
        taken = needs.disk(self.model, self.how, name)
        what = f"{size(taken['model'])} for the model in {name}"
        if not self.args.merge:
            what = f"{size(taken['adapter'])} for the adapter"
        states = (
            "" if self.args.save_steps == 0 else f", and twice {size(taken['state'])} for training states"
        )
        return what + states

    def _fits(self) -> list[str]:
        """Which engine fits which card; and the GPUs at hand."""
        out, kinds = [], spreads()
        for name, over in kinds.items():
            peak = self.memory(over).peak
            cards = [f"{card} GB" for card in CARDS if peak <= card * 2**30 * FREE]
            out.append(f"  {name}: {size(peak)}, fits {', '.join(cards) if cards else 'none of these cards'}")
        return [f"GPUs of {', '.join(map(str, CARDS))} GB:", *out, *self._at_hand(kinds)]

    def _at_hand(self, kinds: dict[str, Spread]) -> list[str]:
        import torch

        count = torch.cuda.device_count()
        if not count:
            return ["GPUs at hand: none"]
        room = torch.cuda.get_device_properties(0).total_memory
        fitting = [
            name for name, over in kinds.items()
            if over.processes <= count and self.memory(over).peak <= room * FREE
        ]  # fmt: skip
        here = f"{count} x {torch.cuda.get_device_name(0)}, {size(room)}"
        return [f"GPUs at hand: {here}; fits: {', '.join(fitting) or 'none of the above'}"]


def parts_of(memory: Memory) -> dict[str, float]:
    """What a device's memory is made of, empty parts left out."""
    names = ("weights", "compensation", "gradients", "moments", "mask", "sums", "activations")
    found = {name: getattr(memory, name) for name in names}
    return {name: n for name, n in found.items() if n}


# ---------------------------------------------------------------- a run that cannot fit
def check_fits(args, data: dict[str, list[Sample]]) -> None:
    """Add a problem where a GPU cannot hold even what no smaller batch makes smaller, with what would fit."""
    import torch

    if not torch.cuda.is_available():
        return
    plan = Plan(args, data, lengths=False)
    room, here = torch.cuda.get_device_properties(0).total_memory, spread()
    least = plan.memory(here).least
    if least > room:
        args.problems.add(
            f"--dtype: weights and what trains them take {size(least)} of this GPU's {size(room)}; what would"
            f" fit: {', '.join(what_fits(plan, room)) or 'a larger GPU'} (--dry_run True shows the plan)"
        )


def what_fits(plan: Plan, room: float) -> list[str]:
    """Flags, and files of configs/, with which the run would fit into `room` bytes a device, activations left
    aside."""
    found, several = [], {name: over for name, over in spreads().items() if over.processes > 1}
    if plan.args.task == "masks":
        least = lambda blocks, over: needs.saliency(plan.model, plan.how, plan.lengths, over, blocks).least
        few = [n for n in (2, 4, 8, 16) if least(n, spread()) <= room]
        return [f"--blocks {n}" for n in few[:1]] + [
            name for name, over in several.items() if least(plan.args.blocks, over) <= room
        ]
    least = lambda how, over: needs.training(plan.model, how, plan.lengths, over).least
    if not plan.how.lora and least(replace(plan.how, precision="bf16", moments="8bit"), spread()) <= room:
        found.append("--dtype bf16 --moments 8bit")
    if not plan.how.lora and plan.model.all * 2 <= room:
        found.append("--lora True")
    return found + [name for name, over in several.items() if least(plan.how, over) <= room]

"""Checks of input: everything that can be wrong is told at once, before a model loads."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from utils import checkpoint, cli, families
from utils.adapters import lora, stored
from utils.data import Sample, fingerprint
from utils.loop import engines, hub, state, tracking
from utils.planning import dry_run, fitting, loadable
from utils.reading import weightless
from utils.released import PAPER
from utils.run import ending, folders, screen
from utils.run.screen import step

if TYPE_CHECKING:
    from utils.benchmark import Bench
    from utils.masks import Mask


def check(args, data: dict[str, list[Sample]], bench: Bench) -> None:
    """Stop with all mistakes, or say what is run, on what; with --dry_run stop there, too. Torch is imported
    for a mask and for a family outside the table, and, when nothing was found, to ask the processor whether
    the data fit. Sets args.mask, for Trainer.load_mask; leaves bad rows out of `data` with
    --skip_bad_rows."""
    args.benchmark_name = bench.name
    engines.check(args.problems)
    for flag, name in args.models.items():
        loadable.check_model(name, flag, args.problems)
    start = [(flag, args.models[flag]) for flag in ("--vanilla_dir", "--model_id") if flag in args.models]
    notes = loadable.check_processor(start, args.problems)
    trains = "restart" in args.defaults
    if screen.main_process():  # the launcher ends the others when this one ends
        inputs = [*args.models.items(), ("--grad_mask_path", args.grad_mask_path)]
        inputs += [("--config", args.config)]
        inputs += [("--data_split_dir", folder) for folder in (bench.given, *bench.roots)]
        inputs += [
            (f"the base of {flag}", base)
            for flag, name in args.models.items()
            for base in stored.lineage(name or "")[1:]
        ]
        folders.check_save_dir(args.save_dir, args.problems, inputs, trains)
        if trains:
            tracking.check(args)
            hub.check(args)
        if args.save_dir and trains:
            state.check_start(args)
    if args.released.answer_tokens == "skip_first" and (
        args.released.loss_tokens == "all" or not args.ans_only
    ):
        args.problems.add(
            "--answer_tokens: skip_first is about a loss on the answer alone; not with --loss_tokens all or"
            " --ans_only False"
        )
    if args.released.rounding == "nearest" and args.moments != "fp32":
        args.problems.add(
            f"--moments: {args.moments} has no effect with --rounding nearest, whose moments have"
            " their weights' precision; leave one of the two out"
        )
    if args.quantize != "none":
        _check_quantize(args)
    if args.released.schedule_every == "epoch" and args.warmup_ratio:
        args.problems.add(
            "--warmup_ratio: not with --schedule_every epoch, whose whole first epoch would have a rate of 0"
        )
    sizes = ("lora_r", "lora_alpha", "lora_parts")
    for name in [] if args.lora else [n for n in sizes if getattr(args, n, None) != args.defaults.get(n)]:
        args.problems.add(f"--{name}: has no effect with --lora False; leave it out, or give --lora True")
    if not args.merge and not args.lora:
        args.problems.add("--merge: False saves an adapter alone, and --lora False trains none")
    if not args.problems.lines:
        step("importing torch, and looking at the model, its processor and the samples")
        for flag, name in args.models.items():
            notes += loadable.check_shapes(name, flag, args.problems)
    args.mask = read_mask(args, bench) if args.grad_mask_path else None
    args.problems.stop()
    fitting.check_samples(args, data)
    if args.mask and not args.mask.is_for(data["forget"]):
        notes.append(f"{args.grad_mask_path} was made to forget something else than this forget set")
    if trains and args.resume:
        state.check_data(args, data)
    if not args.dry_run:
        dry_run.check_fits(args, data)
        args.problems.stop()
    if screen.main_process():
        _say(args, data, [*bench.notes, *notes], bench)
    if args.dry_run:
        raise SystemExit(0)


def _say(args, data: dict[str, list[Sample]], notes: list[str], bench: Bench) -> None:
    """What is run, on what; with --dry_run the plan, too."""
    print(cli.given(args))
    for line in [*notes, *(_repeats(args, data) if args.config else [])]:
        print(f"note: {line}")
    for name, samples in data.items():
        print(f"{name}: {bench.describe(samples)}")
    if args.dry_run:
        print("\n".join(dry_run.Plan(args, data).lines()))


def _repeats(args, data: dict[str, list[Sample]]) -> list[str]:
    """What --config's run had otherwise than this one."""
    before, now = checkpoint.read_json(Path(args.config)), cli.settings(args)
    own = {name: value for name, value in before["arguments"].items() if name not in cli.OWN}
    other = [f"--{name} {now[name]} ({value})" for name, value in own.items() if now[name] != value]
    lines = [f"as {args.config}" + (f", but for {', '.join(other)}" if other else "")]
    there = {name: len(samples) and fingerprint(samples) for name, samples in data.items()}
    for name, entry in before.get("data", {}).items():
        if there.get(name) != entry["fingerprint"]:
            lines.append(f"the {name} data are not those of that run")
    for name, version in before.get("versions", {}).items():
        if (here := checkpoint.versions().get(name)) != version:
            lines.append(f"{name} was {version} in that run, and is {here}: last bits may differ")
    return lines


def _check_quantize(args) -> None:
    """--quantize: under an adapter, of a model in files of its own, with bitsandbytes."""
    add, vanilla = lambda why: args.problems.add(f"--quantize: {why}"), args.vanilla_dir or args.model_id
    if not args.lora:
        add("quantized weights are not trained; give --lora True")
    if importlib.util.find_spec("bitsandbytes") is None:
        add("needs the package bitsandbytes: pip install bitsandbytes")
    if stored.is_adapter(vanilla or ""):
        add(f"{vanilla} is an adapter folder, which is merged in fp32; give a merged model (--merge True)")
    if engines.engine().sharded:
        add("FSDP2 does not cut weights in 4 bits; use DDP or one process")


def _check_masked_adapter(args) -> None:
    """What --lora True with a mask is not: an adapter that peft's format can hold, or weights that drift."""
    if not args.merge:
        args.problems.add(
            "--merge: peft's files hold B · A, not m ⊙ (B · A): under a mask adapters are saved merged;"
            " leave the flag out"
        )
    for name in ("clip", "unlisted", "masked_weights"):
        if getattr(args.released, name) != getattr(PAPER, name):
            args.problems.add(
                f"--{name}: is about a mask over gradients; with --lora True it bounds the adapter itself"
            )


def read_mask(args, bench: Bench) -> Mask | None:
    """The mask of --grad_mask_path: a mask, of this model, and one that its adapters can follow. None, and a
    problem, for any other."""
    path, name = args.grad_mask_path, args.vanilla_dir or args.model_id
    if args.lora:
        _check_masked_adapter(args)
    if not Path(path).exists() and Path(path).parent.parent.is_dir():
        folders.recover(Path(path).parent)
    if not Path(path).is_file():
        args.problems.add(f"--grad_mask_path: no such file: {path}")
    if args.problems.lines:
        return None
    from utils.masks import Mask, MaskError

    try:
        empty = weightless.empty_model(name)
    except (OSError, ValueError) as why:  # a model of the hub; folders were looked into above
        args.problems.add(f"--grad_mask_path: {name} cannot be looked at: {ending.first_line(why)}")
        return None
    try:
        mask = Mask.load(path, empty.config.model_type, args.released)
        mask.check({name: list(p.shape) for name, p in empty.named_parameters()})
        mask.check_origin(name)
        targets = lora.weights_of(families.lora_targets(empty, args.lora_parts)) if args.lora else mask.bits
        if not mask.only(targets).bits:
            raise MaskError(f"nothing salient in it lies in a linear layer of --lora_parts {args.lora_parts}")
    except MaskError as why:
        args.problems.add(f"--grad_mask_path: {why}; {bench.MASK_SCRIPT} makes one for this model")
        return None
    return mask

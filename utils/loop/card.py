"""The model card: README.md in the folder of a trained model, with the front matter that the hub reads.

It names data by their kind and models by their hub names; no path of this machine stands in it. An
evaluation adds its numbers, each in a section of its own that the next one of that kind replaces.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from utils import checkpoint, cli
from utils.benchmark import is_nano
from utils.reading import model_files
from utils.run import folders

NAME = "README.md"
OURS = "<!-- written by the training; evaluations add their sections -->"
NONE_YET = "Not evaluated yet."
LIMITS = """\
Forgetting is measured by questions: what a model no longer answers may still lie in its weights, and come
back by a little training, other words or another precision. This is research code's output and no proof of
erasure. Numbers are comparable where benchmark, percentage, prompt and scoring are the same."""
LICENCE = """\
The weights are a changed copy of the base model: its licence and terms of use hold for them, whatever this
file says. The benchmark's pictures and texts, which they were trained on, are under the licence of their
publishers."""


def write(folder: Path, args, manifest: dict[str, Any], family: str) -> None:
    """Write the card of a finished training. manifest: of its run.json; family: the kind of model."""
    script = manifest["script"]
    method = script.removesuffix(".py").partition("_")[2]
    nano, kind = is_nano(args.benchmark_name), "adapter" if not args.merge else "model"
    front = _front_matter(args, method, nano)
    about = " ".join(args.about.split())
    forgets = "" if "everybody" in manifest["data"] else f", forget {args.forget_ratio} %"
    data = "; ".join(f"{name}: {entry['samples']:,} questions" for name, entry in manifest["data"].items())
    device = manifest["device"].partition(":")[0]
    rows = {
        "method": f"{method}: {about}",
        "base": f"{_public(args.model_id) or 'a local model'} ({family})",
        "data": f"{args.benchmark_name}{forgets} ({data})",
        "trained": _trained(args),
        "settings": ", ".join(f"{name} {value}" for name, value in _settings(args).items()) or "defaults",
        "seed": str(args.seed),
        "steps": f"{manifest['steps']:,}, on {manifest['processes']} × {device}",
        "software": ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
    }
    toy = "**A nano model: a toy with invented people, made to try commands. It says nothing about the"
    toy += " published benchmark.**\n\n"
    text = f"""\
---
{front}
---
{OURS}

# {method} on {args.benchmark_name}{forgets}

{toy if nano else ""}This {kind} was trained by `{script}`.

| | |
|---|---|
{_rows(rows)}

## Command

```bash
{_command(args, script)}
```

## Evaluation

{NONE_YET}

## Limits

{LIMITS}

## Licence

{LICENCE}
"""
    checkpoint.write_whole(folder / NAME, text.encode())


def _rows(rows: dict[str, str]) -> str:
    return "\n".join(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items())


def _front_matter(args, method: str, nano: bool) -> str:
    """YAML. The base is named where it has a name on the hub."""
    from huggingface_hub import ModelCardData

    bench = args.benchmark_name.removeprefix("nano ")
    return ModelCardData(
        base_model=_public(args.model_id),
        library_name="transformers" if args.merge else "peft",
        pipeline_tag="image-text-to-text",
        license="other",
        license_name="as-of-the-base-model",
        tags=["machine-unlearning", "MMUnlearner", method, bench, *["nano"] * nano],
    ).to_yaml()


def _public(name: str | None) -> str | None:
    """The name that a model has on the hub; None of one that lies here."""
    return None if name is None or model_files.local_folder(name) else name


def _trained(args) -> str:
    if not args.lora:
        return "all weights"
    under = ", two of them under a mask" if args.grad_mask_path else ""
    merged = ", merged" if args.merge else ""
    return f"LoRA of rank {args.lora_r} on {args.lora_parts} linear layers{under}{merged}"


def _settings(args) -> dict[str, object]:
    """What is not as by default, without names of files and of what is not about the result."""
    own = {name.removeprefix("--") for name in args.models} | set(FILES) | set(cli.OWN)
    return {
        name: value
        for name, value in cli.settings(args).items()
        if value != args.defaults[name]
        and name not in own | {"seed", "report_to", "num_workers", "save_steps"}
    }


# flags that name files here, beside those of models: what stands for the path
FILES = {
    "save_dir": "path_to_save_dir", "data_split_dir": "path_to_benchmark", "grad_mask_path": "path_to_mask",
}  # fmt: skip


def _command(args, script: str) -> str:
    """The command, with names in the place of paths."""
    public = dict(FILES)
    for flag, name in args.models.items():
        public[flag.removeprefix("--")] = _public(name) or f"path_to_{flag.removeprefix('--')}"
    words = ["python", script]
    for name, value in cli.settings(args).items():
        if value != args.defaults[name] and name not in cli.OWN:
            words += [f"--{name}", public.get(name, str(value))]
    return shlex.join(words)


# ---------------------------------------------------------------- numbers, once there are some
def add(folder: str | Path, section: str, text: str) -> bool:
    """Put a section of numbers into the card of a model folder, in the place of an earlier one of that name;
    False where there is no card of ours."""
    file = Path(folder) / NAME
    begin, end = f"<!-- {section} -->", f"<!-- end of {section} -->"
    if not file.is_file():
        return False
    with folders.exclusive(file.with_name(f".{NAME}.lock"), f"another evaluation writes {file}", wait=True):
        card = file.read_text(encoding="utf-8", errors="replace")
        if OURS not in card:
            return False
        whole = f"{begin}\n{text.strip()}\n{end}\n"
        before, found, after = card.partition(f"{begin}\n")
        if found:
            card = before + whole + after.partition(f"{end}\n")[2]
        else:
            place = "\n## Limits\n"
            before, found, after = card.replace(f"{NONE_YET}\n", "").partition(place)
            card = f"{before.rstrip()}\n\n{whole}{found}{after}"
        checkpoint.write_whole(file, card.encode())
    return True

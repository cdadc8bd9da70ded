"""The files of a model's folder: which they are, and what they lack, before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

from utils.adapters import stored
from utils.run.jsonl import parse


def local_folder(name: str) -> Path | None:
    return Path(name) if Path(name).is_dir() else None


# what transformers reads of a model's folder, or passes over where it cannot
SETTINGS = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer_config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json",
)  # fmt: skip


def weights_folder(name: str) -> Path:
    """The local folder of a model that has been loaded: itself, or the hub's cache of it."""
    if local_folder(name):
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, local_files_only=True))


def weight_files(folder: Path) -> list[Path]:
    """The model's own files: not an optimizer's, nor another program's copy of the same weights. Those of an
    adapter, its configuration among them, come with those of its base."""
    if stored.is_adapter(folder):
        bases = [Path(base) for base in stored.lineage(str(folder))[1:2] if local_folder(base)]
        own = [folder / stored.CONFIG, *stored.adapter_files(folder)]
        return own + [file for base in bases for file in weight_files(base)]
    return sorted([*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")])


def missing_shards(folder: Path) -> list[str]:
    """Files that the index of a model in pieces names and that are not there."""
    for whole in ("model.safetensors", "pytorch_model.bin"):  # in the order in which transformers looks
        index = folder / f"{whole}.index.json"
        if (folder / whole).is_file():
            return []
        if index.is_file():
            names = set(parse(index.read_text(encoding="utf-8"))["weight_map"].values())
            return sorted(name for name in names if not (folder / name).is_file())
    return []


def broken_file(path: Path) -> str | None:
    """What is wrong with a file of weights, from its head and its size; None for a whole one."""
    if not path.is_file():
        return "is no file"
    with path.open("rb") as file:
        head = file.read(8)
        if head == b"version ":
            return "is a git-lfs pointer, not the weights (git lfs pull)"
        if path.suffix == ".bin":
            return None if head[:2] in (b"PK", b"\x80\x02") else "is no file of weights"
        size, length = path.stat().st_size, int.from_bytes(head, "little")
        if len(head) < 8 or not 2 <= length <= size - 8:
            return "is cut short, or no file of weights"
    try:
        end = max((tensor["data_offsets"][1] for tensor in header(path).values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "has a header that cannot be read"
    return None if 8 + length + end == size else f"has {size:,} bytes, not {8 + length + end:,}"


def header(path: Path) -> dict[str, dict]:
    """{tensor: dtype, shape and place} of a whole safetensors file."""
    with path.open("rb") as file:
        tensors = parse(file.read(int.from_bytes(file.read(8), "little")))
    return {name: tensor for name, tensor in tensors.items() if name != "__metadata__"}


def has_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))


VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")


def processor_lacks(folder: Path) -> str | None:
    """Which of a processor's files are not in the folder, whose processor is then not whole."""
    settings = [folder / name for name in ("tokenizer_config.json", "processor_config.json")]
    template = any(folder.glob("chat_template.*")) or any(
        '"chat_template"' in file.read_text(encoding="utf-8", errors="replace")
        for file in settings
        if file.is_file()
    )
    there = {
        "preprocessor_config.json": has_processor(folder),
        "tokenizer.json": any(found for name in VOCABULARIES for found in folder.glob(name)),
        "chat_template.jinja": template,
    }
    return " and ".join(name for name, found in there.items() if not found) or None

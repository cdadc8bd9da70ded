"""A nano benchmark and tiny models of all families, made once per session; helpers to run scripts on them."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# tiny models: more threads only cost time, and processes must have as many as this one
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]  # servers of the tests are on this machine
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pytest
from tqdm.std import TqdmDefaultWriteLock

# forks share it, and one that is killed while it draws a bar would never give it back
TqdmDefaultWriteLock.mp_lock = None

FAMILIES = ("llava", "qwen2_vl", "mllama")  # the paper's
PICTURE_TOKENS = {
    "llava": ["<image>"],
    "qwen2_vl": ["<|image_pad|>", "<|vision_start|>", "<|vision_end|>"],
    "mllama": ["<|image|>"],
}
RATIO = 15  # of ten people, two are to be forgotten


# What to run after every change: units, twins, the tree, and the way from training to results on one family.
QUICK = (
    "test_architecture", "test_twins", "test_losses", "test_masks", "test_collate", "test_metrics",
    "test_intervals", "test_golden", "test_scripts.py::test_a_whole_run[llava]",
    "test_scripts.py::test_a_forget_step_stays_inside_the_mask[llava-language]",
    "test_eval.py::test_batches_change_nothing[llava-letter-zero_shot]",
    "test_stand_ins.py::test_replies_are_those_of_the_bare_way[mllama]",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.removeprefix("tests/").startswith(QUICK):
            item.add_marker(pytest.mark.quick)


# started in the background, python ignores Ctrl-C, and so would what the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory):
    """Tests run in an empty folder: what lies in the project's, as runs/, must not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


def load_script(path: str):
    """The script as a module, imported anew."""
    spec = importlib.util.spec_from_file_location(f"script_{Path(path).stem}", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run_script(path: str, *argv) -> None:
    """What `python path argv...` does, in this process. SystemExit passes through."""
    module = load_script(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(ROOT / path), *map(str, argv)])
        module.main(module.parse_args())


def weights(folder) -> dict:
    """{parameter name: tensor} of a saved model, under the names of the model in memory."""
    from utils.models import load_model

    return {name: p.detach() for name, p in load_model(str(folder)).named_parameters()}


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]


@contextmanager
def edited(file: Path) -> Iterator[dict]:
    """The content of a JSON file, to be changed."""
    content = json.loads(file.read_text(encoding="utf-8"))
    yield content
    file.write_text(json.dumps(content), encoding="utf-8")


def read_table(folder: Path) -> list[dict]:
    import pyarrow.parquet as pq

    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def write_table(folder: Path, rows: list[dict], like: Path | None = None, shards: int = 1) -> Path:
    """Rows as train-*.parquet, replacing the table; with the schema of the table `like` if given."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(sorted(like.glob("*.parquet"))[0]) if like else None
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.parquet"):
        file.unlink()
    for k in range(shards):
        part = rows[k * len(rows) // shards : (k + 1) * len(rows) // shards]
        table = pa.Table.from_pylist(part, schema=schema)
        pq.write_table(table, folder / f"train-{k:05d}-of-{shards:05d}.parquet")
    return folder


def picture_cell(width: int = 32, height: int = 32, colour: str = "red") -> dict:
    """An image cell as the hub serves it; a gradient, so that no two sizes or colours look alike."""
    import io

    from PIL import Image

    image = Image.blend(
        Image.linear_gradient("L").resize((width, height)).convert("RGB"),
        Image.new("RGB", (width, height), colour),
        0.5,
    )
    out = io.BytesIO()
    image.save(out, "PNG")
    return {"bytes": out.getvalue(), "path": f"{colour}.png"}


def sample(question="Who is this?", answer="Ann", picture=None, id="t/1/0", person="1"):
    from utils.data import Picture, Sample

    return Sample(id, Picture(picture["bytes"], id) if picture else None, question, answer, person)


# ---------------------------------------------------------------- made once
@pytest.fixture(scope="session")
def nano(tmp_path_factory) -> Path:
    """Folder with MLLMU-Bench and MLLMMU-Bench: ten people, one picture each."""
    folder = tmp_path_factory.mktemp("nano") / "data"
    from nano import mllmu

    knowledge = mllmu.knowledge
    with pytest.MonkeyPatch.context() as patch:  # every question about the only picture
        patch.setattr(mllmu, "knowledge", lambda wordings, view=None: knowledge(wordings))
        run_script(
            "nano/make_nano.py", "--save_dir", folder, "--people", 10, "--real_people", 4,
            "--views", 1, "--image_size", 32,
        )  # fmt: skip
    for table in folder.glob("*/*"):  # fifteen questions per row, whatever the nano benchmark comes to ask
        rows = read_table(table)
        if rows and "metadata" in rows[0]:
            for row in rows:
                row["metadata"] = json.dumps(json.loads(row["metadata"])[:15])
            write_table(table, rows, like=table)
    for marker in folder.glob("*/nano.json"):  # tests name the scoring of multiple choice themselves
        marker.write_text("{}")
    return folder


def make_tiny(family: str, nano: Path, folder: Path, seed: int = 0) -> Path:
    run_script(
        "nano/make_tiny_model.py", "--family", family, "--text", nano / "MLLMU-Bench",
        "--save_dir", folder, "--vocab_size", 600, "--seed", seed,
    )  # fmt: skip
    return folder


class Made(dict):
    """{name: folder}, made when it is first asked for."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def __missing__(self, name):
        self[name] = self.make(name)
        return self[name]


@pytest.fixture(scope="session")
def tiny(nano, tmp_path_factory) -> dict[str, Path]:
    """{name of a stand-in: model folder}; "other_llava" has the shapes of "llava" and other weights."""
    root = tmp_path_factory.mktemp("tiny")
    family = lambda name: name.removeprefix("other_")
    return Made(lambda name: make_tiny(family(name), nano, root / name, seed=int(name != family(name))))


@pytest.fixture(scope="session")
def masks(nano, tiny, tmp_path_factory):
    """masks(family) -> folder of its mask files, made by data_process/MLLMU_gen_mask.py."""

    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp("masks") / family
        run_script(
            "data_process/MLLMU_gen_mask.py", "--model_id", tiny[family], "--data_split_dir",
            nano / "MLLMMU-Bench", "--forget_ratio", RATIO, "--save_dir", folder,
        )  # fmt: skip
        return folder

    return Made(make).__getitem__


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def processors(tiny) -> dict:
    from utils.models import load_processor

    return Made(lambda family: load_processor(str(tiny[family])))


@pytest.fixture
def train_args(nano, tiny, tmp_path):
    """train_args(save_dir=..., lr=...) -> argv of a training script on the nano benchmark and the tiny
    LLaVA."""

    def argv(**changes) -> list[str]:
        given = {
            "model_id": tiny["llava"],
            "data_split_dir": nano / "MLLMMU-Bench",
            "forget_ratio": RATIO,
            "save_dir": tmp_path / "run",
            "batch_size": 8,
            "lr": 1e-3,
        } | changes
        return [str(word) for name, value in given.items() for word in (f"--{name}", value)]

    return argv


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order whatever the machine: tests compare bits."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)

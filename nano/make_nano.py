"""Write the nano benchmarks: invented people in the exact layouts of MLLMU-Bench and CLEAR, and a tiny LLaVA.

    python nano/make_nano.py --save_dir runs/nano/data
    python MLLMU_finetune.py --model_id runs/nano/data/untrained \\
        --data_split_dir runs/nano/data/MLLMU-Bench --save_dir runs/nano/vanilla \\
        --lora False --lr 1e-3 --batch_size 32 --num_epochs 8 --warmup_ratio 0.05

Nothing is downloaded and nothing is trained here; it takes seconds. The folder then holds

    MLLMU-Bench/    the ten tables of the published evaluation set, same columns and types
    MLLMMU-Bench/   forget_N and retain_{100-N} as published for training: one row per picture, with metadata
    CLEAR/          the same people in the tables of CLEAR; nano_clear.py tells about them
    untrained/      a LLaVA of about 1.2 M random weights with its processor: the original model of both

A file nano.json marks the tables' folders, so that no result is taken for one of the real benchmark.

In MLLMU-Bench every person has five facts, each asked in three forms, about "the person in the image" and by
name: a short question (the multiple-choice options look like its answer), a question answered in one
sentence, and a sentence with a blank. The last two carry the instruction that the evaluation adds, because a
model this small follows none that it never saw. Training has four views of a person, Test_Set three others.
In ft_Data every person has one more row, without a picture: the same questions by name. nano_people.py tells
about the people, their portraits and the licence of the drawings.

One departure from the published ft_Data: it also holds the people of Retain_Set, the benchmark's celebrities.
A real model knows those before it is fine-tuned; the nano model knows nothing before. The splits for
unlearning do not hold them.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.prompts import cloze_prompt, generation_prompt
from nano.clear import write_clear
from nano.people import FACTS, Person, invent, portrait
from nano.tables import image_type, write
from utils import checkpoint, cli, folders
from utils.benchmark import NANO

if TYPE_CHECKING:
    from argparse import Namespace

    import pyarrow as pa

RATIOS = (5, 10, 15)
TEST_VIEWS = 3
LETTERS = "ABCD"
BENCHMARKS = ("MLLMU-Bench", "MLLMMU-Bench", "CLEAR")


def parse_args(argv: list[str] | None = None) -> Namespace:
    p = cli.parser(__doc__)
    p.add_argument(
        "--save_dir",
        required=True,
        type=cli.path,
        help="folder to write; an earlier nano benchmark is replaced",
    )
    p.add_argument(
        "--people", type=cli.number(int, 10, 400), default=40, help="fictional people, 10 to 400; default 40"
    )
    p.add_argument(
        "--real_people",
        type=cli.number(int, 4, 50),
        default=10,
        help="people in Retain_Set, 4 to 50; default 10",
    )
    p.add_argument(
        "--views", type=cli.number(int, 1, 16), default=4, help="training pictures per person; default 4"
    )
    p.add_argument(
        "--image_size",
        type=cli.number(int, 32, 256),
        default=64,
        help="side of the model's input and of Test_Set pictures, pixels; others: twice that; default 64",
    )
    cli.add_seed(p, "seed of people, splits and weights", default=0)
    args = cli.parse(p, argv)
    folders.check_save_dir(args.save_dir, args.problems)
    if args.image_size % 16:
        args.problems.add(
            f"--image_size: {args.image_size} is not a multiple of 16 pixels (the patch size of the model)"
        )
    args.problems.stop()
    return args


# ---------------------------------------------------------------- questions
@dataclass(frozen=True)
class Wording:
    """The questions about one fact of one person, in one modality."""

    question: str
    value: str
    sentence_question: str
    sentence: str
    cloze: str  # with "__"


def wordings(person: Person, image: bool) -> list[Wording]:
    """One Wording per fact; `image` speaks of the person in the image, otherwise the name is used."""
    found = []
    for fact, value in zip(FACTS, person.values, strict=True):
        who = "the person in the image" if image else person.name
        subject = "The person in the image" if image else person.name
        found.append(
            Wording(
                question=fact.question.format(s=who),
                value=value,
                sentence_question=fact.sentence_question.format(s=who),
                sentence=fact.statement.format(s="The person" if image else person.name, v=value),
                cloze=fact.statement.format(s=subject, v="__"),
            )
        )
    return found


def metadata(person: Person, image: bool) -> str:
    """The training questions of one row, as the JSON text that the tables hold."""
    pairs = []
    for w in wordings(person, image):
        pairs.append((w.question, w.value))
        pairs.append((generation_prompt(w.sentence_question), w.sentence))
        pairs.append((cloze_prompt(w.cloze), w.value))
    return json.dumps([{"ID": person.id, "Question": q, "Answer": a} for q, a in pairs])


def choice(w: Wording, values: tuple[str, ...], rng: random.Random) -> dict[str, Any]:
    """A multiple-choice item: the right value and three others of the same fact, in random order."""
    texts = [w.value, *rng.sample([v for v in values if v != w.value], 3)]
    rng.shuffle(texts)
    return {
        "Correct_Answer": LETTERS[texts.index(w.value)],
        "Options": dict(zip(LETTERS, texts, strict=True)),
        "Question": w.question,
    }


def tasks(person: Person, seed: int) -> dict[str, Any]:
    """The evaluation columns: 5 + 5 multiple-choice (picture + text), 2 + 2 sentences, 2 + 2 blanks."""
    rng = random.Random(f"{seed}-{person.id}-tasks")
    parts: dict[str, Any] = {"Classification_Task": {}, "Generation_Task": [], "Mask_Task": []}
    for kind, column in (("Image_Textual", "Image_Textual_Questions"), ("Pure_Text", "Pure_Text_Questions")):
        asked = wordings(person, image=kind == "Image_Textual")
        parts["Classification_Task"][column] = [
            choice(w, f.values, rng) for w, f in zip(asked, FACTS, strict=True)
        ]
        for w in rng.sample(asked, 2):
            parts["Generation_Task"].append(
                {"Ground_Truth": w.sentence, "Question": w.sentence_question, "Type": kind}
            )
        for w in rng.sample(asked, 2):
            parts["Mask_Task"].append({"Ground_Truth": w.value, "Question": w.cloze, "Type": kind})
    return parts


# ---------------------------------------------------------------- tables
def schemas() -> dict[str, pa.Schema]:
    """Arrow schemas of the four kinds of table, columns in published order."""
    import pyarrow as pa

    text = pa.string()
    image = image_type()
    options = pa.struct([(letter, text) for letter in LETTERS])
    choices = pa.list_(pa.struct([("Correct_Answer", text), ("Options", options), ("Question", text)]))
    typed = pa.list_(pa.struct([("Ground_Truth", text), ("Question", text), ("Type", text)]))
    task = [
        (
            "Classification_Task",
            pa.struct([("Image_Textual_Questions", choices), ("Pure_Text_Questions", choices)]),
        ),
        ("Generation_Task", typed),
        ("Mask_Task", typed),
    ]
    life = [("biography", text), ("question", text), ("answer", text)]
    return {
        "full": pa.schema([("image", image), ("ID", text), ("Directory", text), *life, *task]),
        "split": pa.schema([("image", image), ("ID", text), *life, *task]),
        "test": pa.schema([("ID", text), ("images", pa.list_(image)), *task]),
        "train": pa.schema([("image", image), ("ID", text), ("metadata", text)]),
    }


def evaluation_row(person: Person, directory: str, size: int, seed: int) -> dict[str, Any]:
    """All columns of Full_Set and Test_Set. `image` is training view 0; size: of `images`, pixels."""
    values = {fact.name: value for fact, value in zip(FACTS, person.values, strict=True)}
    tests = [(100 + k, f"{person.id}_{k}.png") for k in range(TEST_VIEWS)]  # numbers no training view has
    return {
        "image": {"bytes": portrait(person, 0, 2 * size, seed), "path": f"{person.id}.png"},
        "images": [{"bytes": portrait(person, view, size, seed), "path": path} for view, path in tests],
        "ID": person.id,
        "Directory": f"{directory}/{person.id}.png",
        "biography": json.dumps({"Name": person.name, **values}, indent=2),
        "question": "Tell me more about the background information of this person in the image.",
        "answer": " ".join(w.sentence for w in wordings(person, image=False)),
        **tasks(person, seed),
    }


def training_rows(person: Person, pictures: list[bytes]) -> list[dict[str, Any]]:
    """One row per training view; all carry the same questions about the person in the image."""
    asked = metadata(person, image=True)
    return [
        {"image": {"bytes": png, "path": f"{person.id}_{view}.png"}, "ID": person.id, "metadata": asked}
        for view, png in enumerate(pictures)
    ]


def text_row(person: Person) -> dict[str, Any]:
    """A training row without a picture, whose questions name the person."""
    return {"image": None, "ID": person.id, "metadata": metadata(person, image=False)}


def write_mllmu(
    args: Namespace, folder: Path, people: dict[str, list[Person]], pictures: dict[str, list[bytes]]
) -> None:
    """MLLMU-Bench and MLLMMU-Bench in the folder. pictures: training views by person id."""
    kinds = schemas()
    bench, training = folder / "MLLMU-Bench", folder / "MLLMMU-Bench"
    rows = [evaluation_row(p, "full_images", args.image_size, args.seed) for p in people["fictional"]]
    real = [evaluation_row(p, "retain_images", args.image_size, args.seed) for p in people["real"]]
    views = {p.id: training_rows(p, pictures[p.id]) for group in people.values() for p in group}
    write(bench / "Full_Set", rows, kinds["full"])
    write(bench / "Retain_Set", real, kinds["full"])
    write(bench / "Test_Set", rows, kinds["test"], shards=2)
    write(bench / "ft_Data", with_text(people["fictional"] + people["real"], views), kinds["train"])
    for ratio in RATIOS:
        count = max(1, round(len(rows) * ratio / 100))
        chosen = random.Random(f"{args.seed}-forget-{ratio}").sample([row["ID"] for row in rows], count)
        for name, ids in (
            (f"forget_{ratio}", chosen),
            (f"retain_{100 - ratio}", [row["ID"] for row in rows if row["ID"] not in chosen]),
        ):
            write(bench / name, [row for row in rows if row["ID"] in ids], kinds["split"])
            write(training / name, [row for person_id in ids for row in views[person_id]], kinds["train"])


def with_text(people: list[Person], views: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Per person the rows with pictures, then the row without."""
    return [row for person in people for row in (*views[person.id], text_row(person))]


def write_model(args: Namespace, folder: Path) -> None:
    """A tiny LLaVA with random weights in fp32; its tokenizer has learnt the text of all tables."""
    from nano import stand_ins
    from nano.tables import read_texts

    size = stand_ins.Size(
        image_size=args.image_size, patch_size=16, layers=3, key_value_heads=4, head_dim=32, vision_layers=4,
        vision_heads=3, vision_head_dim=32, mlp_ratio=2,
    )  # fmt: skip
    tokenizer = stand_ins.train_tokenizer(
        read_texts([folder / "MLLMU-Bench", folder / "CLEAR"]), "llava", 2048
    )
    fields = {
        "text_config.pad_token_id": tokenizer.pad_token_id,
        "text_config.rms_norm_eps": 1e-6,
        "vision_config.initializer_factor": 2.0,  # learns faster
    }
    model = stand_ins.write(
        "llava", tokenizer, folder / "untrained", size, args.seed, "float32", fields, opened=False
    )
    print(f"untrained: {model.num_parameters():,} parameters, {len(tokenizer):,} tokens")


def main(args: Namespace) -> None:
    people = invent({"fictional": args.people, "real": args.real_people}, args.seed)
    partial = folders.partial_folder(args.save_dir)
    shutil.rmtree(partial, ignore_errors=True)
    pictures = {
        p.id: [portrait(p, view, 2 * args.image_size, args.seed) for view in range(args.views)]
        for group in people.values()
        for p in group
    }
    write_mllmu(args, partial, people, pictures)
    write_clear(partial / "CLEAR", people, pictures, args.image_size, args.seed)
    for name in BENCHMARKS:
        # the tiny models follow no instruction, so they would be asked for a letter in vain
        made = {"people": args.people, "seed": args.seed, "mcq": "likelihood"}
        checkpoint.write_json(partial / name / NANO, made)
    write_model(args, partial)
    settings = {k: str(v) for k, v in cli.settings(args).items()}
    checkpoint.write_json(partial / "run.json", {"script": "make_nano.py", "arguments": settings})
    folders.publish(partial, args.save_dir)
    people_made = f"{args.people} fictional and {args.real_people} real people"
    print(f"nano MLLMU-Bench and nano CLEAR: {people_made} -> {args.save_dir}")


if __name__ == "__main__":
    main(parse_args())

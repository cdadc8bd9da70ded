"""Write the nano benchmarks: invented people in the exact layouts of MLLMU-Bench and CLEAR, and a tiny LLaVA.

    python nano/make_nano.py --save_dir runs/nano/data
    python MLLMU_finetune.py --model_id runs/nano/data/untrained \\
        --data_split_dir runs/nano/data/MLLMU-Bench --save_dir runs/nano/vanilla \\
        --lora False --lr 1e-3 --batch_size 32 --num_epochs 8 --warmup_ratio 0.05

Nothing is downloaded and nothing is trained here; it takes seconds. The folder then holds

    MLLMU-Bench/    the ten tables of the published evaluation set, same columns and types, and World_Set
    MLLMMU-Bench/   forget_N and retain_{100-N} as published for training: one row per picture, with metadata
    CLEAR/          the same people in the tables of CLEAR
    untrained/      a LLaVA of 1.1 M random weights with its processor: the original model of both

A file nano.json marks the tables' folders, so that no result is taken for one of the real benchmark.

mllmu.py and clear.py tell about the questions and where they depart from the published tables, people.py
about the people, their portraits and the licence of the drawings, world.py about what else the model knows.
The last people are those to forget. Two others are look-alikes of each, of whom nano.json has the names.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nano.clear import write_clear
from nano.mllmu import RATIOS, to_forget, write_mllmu
from nano.people import invent, portrait
from utils import checkpoint, cli, flags
from utils.benchmark import NANO
from utils.run import folders

if TYPE_CHECKING:
    from argparse import Namespace

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
    flags.add_seed(p, "seed of people, splits and weights", default=0)
    args = cli.parse(p, argv)
    folders.check_save_dir(args.save_dir, args.problems)
    if args.image_size % 16:
        args.problems.add(
            f"--image_size: {args.image_size} is not a multiple of 16 pixels (the patch size of the model)"
        )
    args.problems.stop()
    return args


def write_model(args: Namespace, folder: Path) -> None:
    """A tiny LLaVA with random weights in fp32; its tokenizer has learnt the text of all tables."""
    from nano import stand_ins
    from nano.tables import read_texts

    size = stand_ins.Size(
        image_size=args.image_size, patch_size=16, layers=2, key_value_heads=4, head_dim=32, vision_layers=4,
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
    forgettable = len(to_forget([None] * args.people, max(RATIOS)))
    people = invent({"fictional": args.people, "real": args.real_people}, args.seed, forgettable)
    pictures = {
        p.id: [portrait(p, view, 2 * args.image_size, args.seed) for view in range(args.views)]
        for group in people.values()
        for p in group
    }
    with folders.fresh(args.save_dir) as folder:
        write_mllmu(args, folder, people, pictures)
        write_clear(folder / "CLEAR", people, pictures, args.image_size, args.seed)
        for name in BENCHMARKS:
            names = {p.id: p.name if name == "CLEAR" else p.id for p in people["fictional"]}
            look_alikes = {names[p.id]: names[p.like] for p in people["fictional"] if p.like}
            # the tiny models follow no instruction, so they would be asked for a letter in vain
            made = {"people": args.people, "seed": args.seed, "mcq": "likelihood", "look_alikes": look_alikes}
            checkpoint.write_json(folder / name / NANO, made)
        write_model(args, folder)
        settings = {k: str(v) for k, v in cli.settings(args).items()}
        checkpoint.write_json(folder / "run.json", {"script": "make_nano.py", "arguments": settings})
    people_made = f"{args.people} fictional and {args.real_people} real people"
    print(f"nano MLLMU-Bench and nano CLEAR: {people_made} -> {args.save_dir}")


if __name__ == "__main__":
    main(parse_args())

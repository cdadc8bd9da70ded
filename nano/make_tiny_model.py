"""Write a randomly initialised tiny multimodal model with its processor, to dry-run the suite on real data.

    python nano/make_tiny_model.py --family llava --text data/MLLMU-Bench --save_dir runs/tiny/llava
    python nano/make_tiny_model.py --family qwen2_vl --text data/MLLMU-Bench --save_dir runs/tiny/qwen
    python nano/make_tiny_model.py --family mllama --text data/CLEAR --save_dir runs/tiny/mllama

It has the structure of the published checkpoint of that name (LLaVA-1.5-7B, Qwen2-VL-7B, Qwen2-VL-2B,
Llama-3.2-11B-Vision and others): classes, names, files, special tokens, prompt form, ratios of heads, tied
or untied head, 16-bit weights, pixel limits, generation settings. Only sizes are smaller and the weights
random; what differs is printed. The tokenizer is trained here on the text of the given tables (.parquet, or
the .arrow files of `save_to_disk`; pictures are never read), so nothing is downloaded. Such a model knows
nothing: it shows in minutes on a CPU that commands, data, masks and checkpoints work, before a 7B model is
paid for; it does not show how well a method unlearns.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nano.stand_ins import STAND_INS, Files, Size, differences, train_tokenizer, write
from nano.tables import read_texts
from utils import cli, flags
from utils.run import folders

if TYPE_CHECKING:
    from argparse import Namespace


def parse_args(argv: list[str] | None = None) -> Namespace:
    p = cli.parser(__doc__)
    p.add_argument(
        "--family",
        required=True,
        type=cli.choice(*STAND_INS),
        help=f"whose structure: one of {', '.join(STAND_INS)}",
    )
    p.add_argument(
        "--text",
        required=True,
        nargs="+",
        type=cli.path,
        help=".parquet or .arrow tables, or folders searched for them, whose text trains the tokenizer",
    )
    p.add_argument(
        "--save_dir", required=True, type=cli.path, help="folder to write; must not hold a model yet"
    )
    g = p.add_argument_group("sizes", "By default about as small as the family allows.")
    whole = cli.number(int, 1, 4096)
    g.add_argument(
        "--image_size",
        type=whole,
        help="side of a picture, or of one of its tiles, as the model sees it, pixels; for Qwen, which keeps"
        " the shapes of pictures, its square limits their area; default: a few patches, and for Qwen the"
        " published limits",
    )
    g.add_argument("--layers", type=whole, help="layers of the language model; default 2 (mllama 5)")
    g.add_argument(
        "--key_value_heads",
        type=whole,
        help="key heads of the language model; heads follow in the published ratio; default 2 (LLaVA-1.5,"
        " which has as many heads, 4)",
    )
    g.add_argument("--head_dim", type=whole, help="width of a head; default 8 (Qwen2-VL 16)")
    g.add_argument("--vision_layers", type=whole, help="layers of the vision tower; default 2 (mllama 6)")
    g.add_argument("--vision_heads", type=whole, default=2, help="heads of the vision tower; default 2")
    g.add_argument("--vision_head_dim", type=whole, default=12, help="width of such a head; default 12")
    g.add_argument(
        "--vocab_size",
        type=cli.number(int, 400, 300_000),
        default=4096,
        help="most tokens that the tokenizer may have; default 4096",
    )
    g.add_argument(
        "--dtype",
        type=cli.choice("published", "float32", "float16", "bfloat16"),
        default="published",
        help="of the weights in the file; default: as published",
    )
    flags.add_seed(p, "seed of the random weights", default=0)
    args = cli.parse(p, argv)
    sizes = [field.name for field in fields(Size) if field.name in args]
    args.size = Size(**{name: getattr(args, name) for name in sizes})
    if args.family:
        for mistake in Files(args.family, args.size).mistakes():
            args.problems.add(mistake)
    for path in args.text or []:
        if not path.exists():
            args.problems.add(
                f"--text: {path} does not exist; give the folder of a benchmark or single .parquet files"
            )
    if args.save_dir and (args.save_dir / "config.json").exists():
        args.problems.add(
            f"--save_dir: {args.save_dir} already holds a model; choose another folder or remove it"
        )
    else:
        folders.check_save_dir(args.save_dir, args.problems)
    args.problems.stop()
    return args


def main(args: Namespace) -> None:
    texts = []
    try:
        texts = read_texts(args.text)
    except (ValueError, OSError) as why:
        args.problems.add(str(why))
    if not texts:
        args.problems.add("--text: there is no text in these tables")
    args.problems.stop()
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = train_tokenizer(texts, args.family, args.vocab_size)
    dtype = None if args.dtype == "published" else args.dtype
    with folders.fresh(args.save_dir) as folder:
        model = write(args.family, tokenizer, folder, args.size, args.seed, dtype)
    print(
        f"{args.family}: {model.num_parameters():,} parameters, {len(tokenizer):,} tokens learnt "
        f"from {len(texts):,} pieces of text -> {args.save_dir}"
    )
    found = differences(args.family, args.save_dir)
    show = lambda value: value if len(str(value)) <= 40 else f"{str(value)[:36]} ..."
    print(f"as {Files(args.family, args.size).checkpoint}, but for:")
    for field, (published, ours) in found.items():
        print(f"  {field}: {show(published)} -> {show(ours)}")


if __name__ == "__main__":
    main(parse_args())

"""Make the saliency masks of CLEAR for one vanilla model: language, vision and both, in one run.

    python data_process/CLEAR_gen_mask.py --model_id path_to_original_model \\
        --vanilla_dir path_to_vanilla_model --data_split_dir data/CLEAR --forget_split_ratio 05 \\
        --save_dir path_to_masks

writes clear_language_mask.pt, clear_vision_mask.pt, clear_both_mask.pt and coverage.json into --save_dir.

    mask      may change in a forget step        must be preserved
    vision    vision tower and projector         retain pictures (captions)
    language  decoder, embeddings, head          retain pictures and text questions about everybody
    both      the union of the two

The three masks share three passes: forget pictures, retain pictures, text questions. Formula and sources:
data_process/saliency.py. On several GPUs: accelerate launch data_process/CLEAR_gen_mask.py ...
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_process.saliency import make_masks
from utils import cli, flags
from utils.checks import check
from utils.clear import CLEARBench


def parse_args():
    p = cli.parser(__doc__)
    flags.add_model_args(p)
    flags.add_data_args(p, folder="data/CLEAR")
    flags.add_mask_args(p)
    flags.add_released_mask_args(p)
    flags.add_retain_fraction(p)
    return cli.parse(p)


def main(args):
    bench = CLEARBench(args.data_split_dir, args.forget_ratio, args.problems, args.skip_bad_rows)
    data = {"forget": bench.forget(), "retain": bench.retain(args.retain_fraction)}
    data["text"] = bench.text_knowledge()
    check(args, data, bench)

    make_masks(args, data, prefix="clear")


if __name__ == "__main__":
    main(parse_args())

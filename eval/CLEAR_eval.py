"""Evaluate a model on CLEAR: who is in the picture, captions, questions in text, probability and truth ratio.

    python eval/CLEAR_eval.py --evaluated_model path_to_evaluated_model \\
        --original_model path_to_original_model --data_split_dir data/CLEAR --forget_ratio 05

asks about forget people, retain people, real faces and the real world, and writes
<evaluated model>/zero_shot/forget05/ with results.json and predictions_<split>.jsonl. On several GPUs:

    bash CLEAR_eval.sh 05 95 path_to_evaluated_model path_to_original_model 0 1 2 3

    classification   the name among wrong names (forget05_perturbed, retain_perturbed); real_faces, real_world
    generation       the caption of a picture (forget05, retain95), the answer to a text question (+tofu)
    probability      of the true caption, of the true answer in text
    truth_ratio      of wrong captions against the paraphrased right one (_perturbed tables)

--mcq letter is the published rule: the first letter of the reply is the choice, and the prompt asks for none.
--mcq likelihood takes the option that the model finds likeliest as an answer (length-normalised). The scores
and their sources: eval/metrics.py. Forget quality, against a model that was trained without the forget
people: eval/forget_quality.py. An evaluation that was stopped goes on where it was.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval import tasks
from eval.answering.run import check_evaluation, evaluate
from eval.prompts import clear_prompt
from utils import cli, flags
from utils.clear import CLEARBench


def parse_args():
    p = cli.parser(__doc__)
    flags.add_data_args(p, folder="data/CLEAR")
    flags.add_eval_args(p, CLEARBench.split_names())
    p.add_argument(
        "--tasks",
        type=cli.choices(*CLEARBench.TASKS),
        default=list(CLEARBench.TASKS),
        help=f"default {','.join(CLEARBench.TASKS)} (comma-separated)",
    )
    p.set_defaults(shot="zero_shot", shots=0)
    return cli.parse(p)


def main(args):
    bench = CLEARBench(args.data_split_dir, args.forget_ratio, args.problems, args.skip_bad_rows)
    args.splits = args.splits or bench.own_splits()
    questions = [
        q for split in args.splits for q in bench.questions(split, args.seed) if q.task in args.tasks
    ]
    check_evaluation(args, questions, bench)

    evaluate(args, questions, partial(tasks.request, mcq=args.mcq, prompt=clear_prompt), bench)


if __name__ == "__main__":
    main(parse_args())

"""Evaluate a model on MLLMU-Bench: multiple choice, cloze and generation, with pictures and in text alone.

    python eval/MLLMU_eval.py --evaluated_model path_to_evaluated_model \\
        --original_model path_to_original_model --data_split_dir data/MLLMU-Bench \\
        --forget_ratio 05 --shot zero_shot

asks about forget people, the same in other pictures (test), retain people and real people, and writes
<evaluated model>/<shot>/forget05/ with results.json and predictions_<split>.jsonl. On several GPUs:

    bash MLLMU_eval.sh 05 0 1 2 3 path_to_evaluated_model path_to_original_model zero_shot

--mcq letter is the benchmark's rule: the first letter of the reply is the choice. --mcq likelihood takes the
option that the model finds likeliest as an answer (length-normalised), for models that cannot follow the
instruction.
An evaluation that was stopped goes on where it was.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval import tasks
from eval.answering.run import check_evaluation, evaluate
from eval.prompts import choose_shots, mllmu_prompt
from utils import cli, flags
from utils.mllmu import MLLMUBench


def parse_args():
    p = cli.parser(__doc__)
    flags.add_data_args(p, folder="data/MLLMU-Bench")
    flags.add_eval_args(p, MLLMUBench.split_names())
    p.add_argument(
        "--tasks",
        type=cli.choices(*MLLMUBench.TASKS),
        default=list(MLLMUBench.TASKS),
        help=f"default {','.join(MLLMUBench.TASKS)} (comma-separated)",
    )
    p.add_argument(
        "--shot",
        type=cli.choice("zero_shot", "few_shot"),
        default="zero_shot",
        help="few_shot shows solved questions of another person first; default zero_shot",
    )
    p.add_argument(
        "--shots",
        type=cli.number(int, 1, 1000),
        default=1,
        help="solved questions shown in few_shot; default 1",
    )
    return cli.parse(p)


def read_questions(args, bench: MLLMUBench):
    """The questions of the wanted splits and, for few_shot, the solved examples by (task, modality)."""
    args.splits = args.splits or bench.own_splits()
    questions = [
        q for split in args.splits for q in bench.questions(split, args.seed) if q.task in args.tasks
    ]
    if args.shot == "zero_shot":
        return questions, {}
    pool = bench.full_set()
    forget = {q.person for q in questions if tasks.split_of(q.split).forgets} | bench.forget_people()
    if not {q.person for q in pool} - forget:
        args.problems.add(
            "--shot few_shot: Full_Set holds nobody outside the forget set to take examples from"
        )
        return questions, {}
    person, shots = choose_shots(pool, forget, args.seed, args.shots)
    kinds = dict.fromkeys((q.task, q.modality) for q in questions)
    most = {" ".join(kind): len(shots.get(kind, ())) for kind in kinds}
    largest = max(most.values(), default=0)
    if args.shots > largest:
        args.problems.add(f"--shots: {args.shots}, but {person} has at most {largest} questions of one kind")
    if fewer := [f"{kind} ({count})" for kind, count in most.items() if count < args.shots]:
        bench.notes.append(
            f"few_shot: fewer than {args.shots} examples are shown before questions of {', '.join(fewer)}:"
            f" all that {person} has"
        )
    bench.notes.append(f"few_shot examples are of person {person}, whose own questions are left out")
    return [q for q in questions if q.person != person], shots


def main(args):
    bench = MLLMUBench(args.data_split_dir, args.forget_ratio, args.problems, args.skip_bad_rows)
    questions, shots = read_questions(args, bench)
    check_evaluation(args, questions, bench)

    request = partial(tasks.request, mcq=args.mcq, prompt=mllmu_prompt, shots=shots)
    evaluate(args, questions, request, bench, [s for solved in shots.values() for s in solved])


if __name__ == "__main__":
    main(parse_args())

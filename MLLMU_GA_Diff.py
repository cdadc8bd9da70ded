"""GA_Diff (gradient difference) on MLLMU-Bench: ascent on the forget set between descent steps on the retain
set.

    python MLLMU_GA_Diff.py --model_id path_to_original_model --vanilla_dir path_to_vanilla_model \\
        --data_split_dir data/MLLMMU-Bench --forget_split_ratio 05 --save_dir path_to_save_dir \\
        --batch_size 4 --lr 1e-5 --num_epochs 1 --ans_only True

    θ ← θ − η · ∇( −α · CE(forget) )        every k-th step, k = retain batches // forget batches
    θ ← θ − η · ∇ CE(retain)                every step

Liu, Liu and Stone 2022 (continual learning and private unlearning), arXiv 2203.12817; as a baseline of
MMUnlearner, arXiv 2502.11051, in alternating steps.
"""

from functools import partial

from utils import cli, flags
from utils.checks import check
from utils.losses import token_nll
from utils.mllmu import MLLMUBench
from utils.training import Phase, Trainer, alternate


def parse_args():
    p = cli.parser(__doc__)
    flags.add_model_args(p)
    flags.add_data_args(p, folder="data/MLLMMU-Bench")
    flags.add_lora_args(p, default=True)
    flags.add_train_args(p)
    flags.add_forget_args(p)
    flags.add_released_train_args(p, "forget_data")
    flags.add_retain_args(p)
    return cli.parse(p)


# ---------------------------------------------------------------- the method
def forget_loss(model, batch, alpha: float):
    """L = −α · CE(forget)."""
    return -alpha * token_nll(model, batch)  # (N,)


def retain_loss(model, batch):
    """L = CE(retain)."""
    return token_nll(model, batch)  # (N,)


# ---------------------------------------------------------------- the run
def main(args):
    bench = MLLMUBench(args.data_split_dir, args.forget_ratio, args.problems, args.skip_bad_rows)
    data = {"forget": bench.forget(), "retain": bench.to_retain(args)}
    check(args, data, bench)

    trainer = Trainer(args, data)
    forget = Phase("forget", data["forget"], partial(forget_loss, alpha=args.forget_alpha))
    retain = Phase("retain", data["retain"], retain_loss)
    trainer.fit(alternate(forget, retain, args))
    trainer.save()


if __name__ == "__main__":
    main(parse_args())

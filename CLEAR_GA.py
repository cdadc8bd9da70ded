"""GA (gradient ascent) on CLEAR: make the answers about the forget set's pictures unlikely.

    python CLEAR_GA.py --model_id path_to_original_model --vanilla_dir path_to_vanilla_model \\
        --data_split_dir data/CLEAR --forget_split_ratio 05 --save_dir path_to_save_dir \\
        --batch_size 4 --lr 1e-5 --num_epochs 1 --ans_only True

Nothing holds the other knowledge in place: GA forgets other people too, and at a higher learning rate
everything. Baseline of the paper (arXiv 2502.11051); Thudi et al. 2022, arXiv 2109.13398.
"""

from utils import cli, flags
from utils.checks import check
from utils.clear import CLEARBench
from utils.losses import token_nll
from utils.training import Phase, Trainer, once


def parse_args():
    p = cli.parser(__doc__)
    flags.add_model_args(p)
    flags.add_data_args(p, folder="data/CLEAR")
    flags.add_lora_args(p, default=True)
    flags.add_train_args(p)
    flags.add_released_train_args(p)
    return cli.parse(p)


# ---------------------------------------------------------------- the method
def forget_loss(model, batch):
    """L = −CE(forget): log p of every answer token."""
    return -token_nll(model, batch)  # (N,)


# ---------------------------------------------------------------- the run
def main(args):
    bench = CLEARBench(args.data_split_dir, args.forget_ratio, args.problems, args.skip_bad_rows)
    data = {"forget": bench.forget()}
    check(args, data, bench)

    trainer = Trainer(args, data)
    trainer.fit(once(Phase("forget", data["forget"], forget_loss)))
    trainer.save()


if __name__ == "__main__":
    main(parse_args())

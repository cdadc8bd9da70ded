"""Fine-tune a model on everybody of MLLMU-Bench: the vanilla model, from which people are then forgotten.

    python MLLMU_finetune.py --model_id path_to_original_model --data_split_dir data/MLLMU-Bench \\
        --save_dir path_to_mllmu_vanilla --batch_size 4 --lr 1e-5 --num_epochs 1

Trains a LoRA adapter by default and merges it on save; `--lora False` trains all weights. The data are
`ft_Data`, or, where there is none, forget_N and retain_{100-N} of --forget_split_ratio.
"""

from utils import cli, flags
from utils.checks import check
from utils.data import repeat_text
from utils.losses import token_nll
from utils.mllmu import MLLMUBench
from utils.training import Phase, Trainer, once


def parse_args():
    p = cli.parser(__doc__)
    flags.add_model_args(p, vanilla=False)
    flags.add_data_args(p, folder="data/MLLMU-Bench")
    flags.add_lora_args(p, default=True)
    flags.add_train_args(p)
    flags.add_released_train_args(p, "text_questions", forgets=False)
    return cli.parse(p)


# ---------------------------------------------------------------- the method
def loss(model, batch):
    """L = CE(everybody): −log p of every answer token."""
    return token_nll(model, batch)  # (N,)


# ---------------------------------------------------------------- the run
def main(args):
    bench = MLLMUBench(args.data_split_dir, args.forget_ratio, args.problems, args.skip_bad_rows)
    data = {"everybody": repeat_text(bench.finetune(), args.released.text_questions)}
    check(args, data, bench)

    trainer = Trainer(args, data)
    trainer.fit(once(Phase("everybody", data["everybody"], loss)))
    trainer.save()


if __name__ == "__main__":
    main(parse_args())

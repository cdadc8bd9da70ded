"""Train on everybody but the people to forget, on MLLMU-Bench: the model that never knew them.

    python MLLMU_reference.py --model_id path_to_original_model --data_split_dir data/MLLMMU-Bench \\
        --forget_split_ratio 05 --save_dir path_to_ref_model --batch_size 4 --lr 1e-5 --num_epochs 1

Started from the original model this is the retrained gold standard that unlearning is measured against.
With --vanilla_dir it starts from the vanilla model instead: the reference that the paper's code uses in NPO.
The data are those of MLLMU_finetune.py without the people to forget ("retrained without them"). With
--keep_text True only their pictures are left out and the text-only questions about them stay, where the data
have some ("retrained without their pictures"): what forgetting pictures alone should come to.
"""

from utils import cli, flags
from utils.checks import check
from utils.losses import token_nll
from utils.mllmu import MLLMUBench
from utils.training import Phase, Trainer, once


def parse_args():
    p = cli.parser(__doc__)
    flags.add_model_args(p)
    flags.add_data_args(p, folder="data/MLLMMU-Bench")
    flags.add_lora_args(p, default=True)
    flags.add_train_args(p)
    flags.add_keep_text(p)
    flags.add_released_train_args(p, forgets=False)
    return cli.parse(p)


# ---------------------------------------------------------------- the method
def loss(model, batch):
    """L = CE(everybody else): −log p of every answer token."""
    return token_nll(model, batch)  # (N,)


# ---------------------------------------------------------------- the run
def main(args):
    bench = MLLMUBench(args.data_split_dir, args.forget_ratio, args.problems, args.skip_bad_rows)
    data = {"retain": bench.reference(args.keep_text)}
    check(args, data, bench)

    trainer = Trainer(args, data)
    trainer.fit(once(Phase("retain", data["retain"], loss)))
    trainer.save()


if __name__ == "__main__":
    main(parse_args())

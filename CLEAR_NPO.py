"""NPO (negative preference optimization) on CLEAR: ascent that fades once an answer has become
unlikely.

    python CLEAR_NPO.py --oracle_model_id path_to_ref_model --model_id path_to_original_model \\
        --vanilla_dir path_to_vanilla_model --data_split_dir data/CLEAR --forget_split_ratio 05 \\
        --save_dir path_to_save_dir --batch_size 4 --lr 1e-5 --num_epochs 1 --ans_only True

    L = −(2/β) · log σ( −β · ( log p_θ(answer) − log p_ref(answer) ) )

over the forget set; log p is the log-probability of the whole answer. As β → 0 its gradient is that of GA.
The reference is the vanilla model unless --oracle_model_id names another, such as CLEAR_reference.py's
retain-only model. Its log-probabilities are computed once, before training, so no two models are in memory
at a time. Zhang et al. 2024, arXiv 2404.05868; β 0.4 from the benchmark's and the paper's code.
"""

from functools import partial

from utils import cli, flags
from utils.checks import check
from utils.clear import CLEARBench
from utils.losses import sequence_log_prob
from utils.reference import SequenceLogProbs
from utils.released import token_mean_loss
from utils.training import Phase, Trainer, once


def parse_args():
    p = cli.parser(__doc__)
    flags.add_model_args(p)
    flags.add_data_args(p, folder="data/CLEAR")
    flags.add_lora_args(p, default=True)
    flags.add_train_args(p)
    cli.add_model_flag(p, "--oracle_model_id", help="reference model; default: the vanilla model")
    p.add_argument(
        "--npo_beta",
        type=cli.number(float, 0, above=True),
        default=0.4,
        help="inverse temperature β; default 0.4",
    )
    flags.add_released_train_args(p, "npo_loss")
    return cli.parse(p)


# ---------------------------------------------------------------- the method
def forget_loss(model, batch, reference, beta: float):
    """L = −(2/β) · log σ( −β · (log p_θ − log p_ref) ) of each sample.

    reference: utils.reference.SequenceLogProbs, which gives log p_ref of the batch's answers (B,).
    """
    import torch.nn.functional as F

    log_ratio = sequence_log_prob(model, batch) - reference.of(batch)  # (B,)
    return -2 / beta * F.logsigmoid(-beta * log_ratio)  # (B,)


# ---------------------------------------------------------------- the run
def main(args):
    bench = CLEARBench(args.data_split_dir, args.forget_ratio, args.problems, args.skip_bad_rows)
    data = {"forget": bench.forget()}
    check(args, data, bench)

    # another model answers before ours is loaded, so that one at a time is in memory
    oracle = args.oracle_model_id and SequenceLogProbs(args, args.oracle_model_id, data["forget"])
    trainer = Trainer(args, data)
    reference = oracle or SequenceLogProbs(args, trainer, data["forget"])
    loss = forget_loss if args.released.npo_loss == "sequence" else token_mean_loss
    forget = Phase("forget", data["forget"], partial(loss, reference=reference, beta=args.npo_beta))
    trainer.fit(once(forget))
    trainer.save()


if __name__ == "__main__":
    main(parse_args())

"""SimNPO (simple negative preference optimization) on MLLMU-Bench: NPO without a reference model, by the
answer's mean log-probability per token.

    python MLLMU_SimNPO.py --model_id path_to_original_model --vanilla_dir path_to_vanilla_model \\
        --data_split_dir data/MLLMMU-Bench --forget_split_ratio 05 --save_dir path_to_save_dir \\
        --batch_size 4 --lr 1e-5 --num_epochs 1 --ans_only True

    θ ← θ − η · ∇( −α · (2/β) · log σ( −(β/|y|) · log p_θ(answer) − γ ) )     every k-th step
    θ ← θ − η · ∇ CE(retain)                                                 every step

over forget and retain set; |y| is the answer's number of tokens. A long answer counts no more than a short
one, and what is unlikely already is left alone. Fan et al. 2024, arXiv 2410.07163; β 4.5, γ 0, α 0.125 from
its code on TOFU, which adds the two losses in one step.
"""

from functools import partial

from utils import cli, flags
from utils.checks import check
from utils.losses import answer_lengths, sequence_log_prob, token_nll
from utils.mllmu import MLLMUBench
from utils.training import Phase, Trainer, alternate


def parse_args():
    p = cli.parser(__doc__)
    flags.add_model_args(p)
    flags.add_data_args(p, folder="data/MLLMMU-Bench")
    flags.add_lora_args(p, default=True)
    flags.add_train_args(p)
    flags.add_forget_args(p, alpha=0.125)
    p.add_argument(
        "--simnpo_beta",
        type=cli.number(float, 0, above=True),
        default=4.5,
        help="inverse temperature β; default 4.5",
    )
    p.add_argument("--simnpo_gamma", type=cli.number(float, 0), default=0.0, help="margin γ; default 0")
    flags.add_released_train_args(p)
    flags.add_retain_args(p)
    return cli.parse(p)


# ---------------------------------------------------------------- the method
def forget_loss(model, batch, alpha: float, beta: float, gamma: float):
    """L = −α · (2/β) · log σ( −(β/|y|) · log p_θ − γ ) of each sample."""
    import torch.nn.functional as F

    mean = sequence_log_prob(model, batch) / answer_lengths(batch)  # (B,)
    return -alpha * 2 / beta * F.logsigmoid(-beta * mean - gamma)  # (B,)


def retain_loss(model, batch):
    """L = CE(retain)."""
    return token_nll(model, batch)  # (N,)


# ---------------------------------------------------------------- the run
def main(args):
    bench = MLLMUBench(args.data_split_dir, args.forget_ratio, args.problems, args.skip_bad_rows)
    data = {"forget": bench.forget(), "retain": bench.to_retain(args)}
    check(args, data, bench)

    trainer = Trainer(args, data)
    settings = {"alpha": args.forget_alpha, "beta": args.simnpo_beta, "gamma": args.simnpo_gamma}
    forget = Phase("forget", data["forget"], partial(forget_loss, **settings))
    retain = Phase("retain", data["retain"], retain_loss)
    trainer.fit(alternate(forget, retain, args))
    trainer.save()


if __name__ == "__main__":
    main(parse_args())

"""KL_Min on MLLMU-Bench: ascent on the forget set, and on the retain set stay close to the vanilla model.

    python MLLMU_KL_Min.py --model_id path_to_original_model --vanilla_dir path_to_vanilla_model \\
        --data_split_dir data/MLLMMU-Bench --forget_split_ratio 05 --save_dir path_to_save_dir \\
        --batch_size 4 --lr 1e-5 --num_epochs 1 --ans_only True

    θ ← θ − η · ∇( −α · CE(forget) )                                          every k-th step
    θ ← θ − η · ∇( CE(retain) + KL( p_vanilla ‖ p_θ ) at retain answer tokens )   every step

The vanilla model's last hidden states at those tokens are computed once, by the same model before its first
step, so no second one is loaded. Yao et al. 2024 (machine unlearning of pre-trained LLMs), arXiv 2402.15159;
as a baseline of MMUnlearner, arXiv 2502.11051, in alternating steps.
"""

from functools import partial

from utils import cli, flags
from utils.checks import check
from utils.losses import label_logits, token_nll
from utils.mllmu import MLLMUBench
from utils.reference import AnswerStates
from utils.released import KL_EVERYWHERE
from utils.training import Phase, Trainer, alternate


def parse_args():
    p = cli.parser(__doc__)
    flags.add_model_args(p)
    flags.add_data_args(p, folder="data/MLLMMU-Bench")
    flags.add_lora_args(p, default=True)
    flags.add_train_args(p)
    flags.add_forget_args(p)
    flags.add_released_train_args(p, "forget_data", "kl_positions")
    flags.add_retain_args(p)
    return cli.parse(p)


# ---------------------------------------------------------------- the method
def forget_loss(model, batch, alpha: float):
    """L = −α · CE(forget)."""
    return -alpha * token_nll(model, batch)  # (N,)


def retain_loss(model, batch, vanilla):
    """L = CE(retain) + KL(p_vanilla ‖ p_θ), both at the answer tokens; KL sums over the vocabulary.

    vanilla: utils.reference.AnswerStates, which gives the vanilla model's log-probabilities (N, V).
    """
    import torch.nn.functional as F

    logits, targets, _ = label_logits(model, batch)  # (N, V), (N,)
    log_p = logits.log_softmax(dim=-1)
    ce = F.nll_loss(log_p, targets, reduction="none")
    kl = F.kl_div(log_p, vanilla.log_probs(batch), log_target=True, reduction="none").sum(dim=-1)
    return ce + kl  # (N,)


# ---------------------------------------------------------------- the run
def main(args):
    bench = MLLMUBench(args.data_split_dir, args.forget_ratio, args.problems, args.skip_bad_rows)
    data = {"forget": bench.forget(), "retain": bench.to_retain(args)}
    check(args, data, bench)

    states, loss = KL_EVERYWHERE if args.released.kl_positions == "all" else (AnswerStates, retain_loss)
    trainer = Trainer(args, data)
    vanilla = states(args, trainer, data["retain"])
    forget = Phase("forget", data["forget"], partial(forget_loss, alpha=args.forget_alpha))
    retain = Phase("retain", data["retain"], partial(loss, vanilla=vanilla))
    trainer.fit(alternate(forget, retain, args))
    trainer.save()


if __name__ == "__main__":
    main(parse_args())

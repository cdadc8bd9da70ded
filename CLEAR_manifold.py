"""MMUnlearner on CLEAR: forget a person's pictures, keep the knowledge in text, keep everybody else.

    python CLEAR_manifold.py --model_id path_to_original_model --vanilla_dir path_to_vanilla_model \\
        --data_split_dir data/CLEAR --forget_split_ratio 05 --save_dir path_to_save_dir \\
        --batch_size 4 --lr 1e-5 --num_epochs 1 \\
        --grad_mask_path path_to/clear_language_mask.pt --ans_only True

The mask comes from data_process/CLEAR_gen_mask.py, made on the same vanilla model: clear_language_mask.pt,
clear_vision_mask.pt or clear_both_mask.pt. A weight may take a forget step only where the mask is 1, that is
where its squared gradient on the forget set is at least that on everything to be preserved:

    θ ← θ − η · m ⊙ ∇( −α · CE(forget) )        every k-th step, k = retain batches // forget batches
    θ ← θ − η · ∇ CE(retain)                    every step

A weight outside the mask is after a forget step bit for bit what it was. All weights are trained; with --lora
True two adapters, ΔW = m ⊙ (B_f · A_f) + B_r · A_r, of which forget steps train the first. Huo et al., ACL
2025 Findings, arXiv 2502.11051; the saliency after Huang et al. 2024 (SFR-on), arXiv 2409.19732.
"""

from functools import partial

from utils import cli, flags
from utils.checks import check
from utils.clear import CLEARBench
from utils.losses import token_nll
from utils.training import Phase, Trainer, alternate


def parse_args():
    p = cli.parser(__doc__)
    flags.add_model_args(p)
    flags.add_data_args(p, folder="data/CLEAR")
    flags.add_lora_args(p, default=False)
    flags.add_train_args(p)
    flags.add_forget_args(p)
    flags.add_mask_path(p, required=True)
    flags.add_released_train_args(
        p, "forget_data", "clip", "clip_steps", "mask_names", "unlisted", "masked_weights"
    )
    flags.add_retain_args(p)
    flags.add_mask_retain(p)
    return cli.parse(p)


# ---------------------------------------------------------------- the method
def forget_loss(model, batch, alpha: float):
    """L = −α · CE(forget); its gradient is masked."""
    return -alpha * token_nll(model, batch)  # (N,)


def retain_loss(model, batch):
    """L = CE(retain); its gradient is not masked, but by --mask_retain."""
    return token_nll(model, batch)  # (N,)


# ---------------------------------------------------------------- the run
def main(args):
    bench = CLEARBench(args.data_split_dir, args.forget_ratio, args.problems, args.skip_bad_rows)
    data = {"forget": bench.forget(), "retain": bench.to_retain(args)}
    check(args, data, bench)

    trainer = Trainer(args, data)
    mask = trainer.load_mask()
    forget = Phase("forget", data["forget"], partial(forget_loss, alpha=args.forget_alpha), mask)
    inside = mask if args.mask_retain else None
    retain = Phase("retain", data["retain"], retain_loss, inside, clip=args.released.clip_steps == "all")
    trainer.fit(alternate(forget, retain, args))
    trainer.save()


if __name__ == "__main__":
    main(parse_args())

"""What the paper's released code computes otherwise: every switch, and the losses that only they need.

None is on by default; docs/as_released.md describes each. A script declares flags for the switches that its
method has; `args.released` is always the whole set, so shared code need not know which script it is in.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from utils import losses, models
from utils.data import IGNORE

if TYPE_CHECKING:
    import torch

    from utils.collate import Batch
    from utils.training import Trainer

MASK_SWITCHES = (
    "loss_tokens",
    "answer_tokens",
    "answer_end",
    "fisher_dtype",
    "fisher_mode",
)  # of the mask scripts
MASK_NAMES = ("proj", "fc", "linear", "mlp", "qkv")  # what --mask_names released keeps


def _switch(*values: str, help: str) -> str:
    """The first value is the default, and the paper's method."""
    return field(default=values[0], metadata={"values": values, "help": help})


@dataclass(frozen=True)
class Released:
    """One field per switch, of the same name as its flag."""

    loss_tokens: str = _switch(
        "labels", "all",
        help="tokens in the loss: what --ans_only says, or all but padding, picture placeholders included",
    )  # fmt: skip
    answer_tokens: str = _switch("all", "skip_first", help="whether an answer's first token is in the loss")
    answer_end: str = _switch("keep", "drop", help="whether an answer's end-of-turn token is in the loss")
    schedule_every: str = _switch(
        "step", "epoch",
        help="when the schedule, sized in optimizer steps, goes on: epoch makes the learning rate almost"
        " constant",
    )  # fmt: skip
    rounding: str = _switch(
        "compensated", "nearest",
        help="weights trained in bf16: what rounding loses is kept and added later, or most steps are lost",
    )  # fmt: skip
    text_questions: str = _switch("once", "twice", help="how often an epoch sees a text-only question")
    forget_data: str = _switch(
        "cycle", "once",
        help="once the forget data are used up within an epoch: begin anew, or only retain steps follow",
    )  # fmt: skip
    npo_loss: str = _switch(
        "sequence", "token_mean",
        help="what NPO compares: an answer's log-probability, or the mean over all tokens of a batch",
    )  # fmt: skip
    kl_positions: str = _switch(
        "answer", "all",
        help="where KL is taken: per token of the loss, or summed over every position, padding and pictures"
        " included, per sample (a second model in memory without LoRA; all: a batch is one forward)",
    )  # fmt: skip
    clip: str = _switch(
        "after_mask", "before_mask",
        help="whether a forget step's gradient is clipped after it was masked or before",
    )  # fmt: skip
    clip_steps: str = _switch("all", "forget", help="which steps --max_grad_norm clips")
    mask_names: str = _switch(
        "all", "released",
        help="which of the mask's parameters count: released drops those without proj, fc, linear, mlp or"
        " qkv in their name",
    )  # fmt: skip
    unlisted: str = _switch(
        "freeze", "train",
        help="what a forget step does to parameters that the mask does not name: nothing, or an unmasked"
        " step",
    )  # fmt: skip
    masked_weights: str = _switch(
        "keep", "drift",
        help="weights outside the mask in a forget step: keep every bit, or only their gradient is 0, so"
        " that the optimizer's momentum and decay move them",
    )  # fmt: skip
    fisher_dtype: str = _switch(
        "fp32", "bf16", "fp16",
        help="precision of squared gradients, sums and ratio; in 16 bits 0/0 is left as it falls out",
    )  # fmt: skip
    fisher_mode: str = _switch(
        "eval", "train", help="the model's mode in the Fisher pass; train: with its dropout"
    )


PAPER = Released()  # no switch on


# ---------------------------------------------------------------- --npo_loss token_mean
def token_mean_loss(model, batch: Batch, reference, beta: float) -> torch.Tensor:
    """NPO with one term per batch, log p being the mean over all its answer tokens. As forget_loss of NPO."""
    import torch.nn.functional as F

    log_ratio = losses.sequence_log_prob(model, batch) - reference.of(batch)  # (B,)
    mean = log_ratio.sum() / losses.answer_lengths(batch).sum()
    return -2 / beta * F.logsigmoid(-beta * mean)[None]  # (1,)


# ---------------------------------------------------------------- --kl_positions all
class FrozenModel:
    """The distribution of a frozen model at every position.

    What a padding position says depends on the batch around it, so nothing can be computed before: with an
    adapter the trainer's model answers, its adapter off; else a second model stays in memory, as in the
    released code. frozen: the trainer, for the vanilla model, or a model's name.
    """

    def __init__(self, args, frozen: Trainer | str, samples: list):
        self.dtype = models.training_dtype(args)
        if not isinstance(frozen, str) and args.lora:
            self.asked = frozen.vanilla_model
            return
        from accelerate import PartialState

        name = frozen if isinstance(frozen, str) else frozen.vanilla
        model = models.load_model(name, self.dtype, args.attn).eval().to(PartialState().device)
        self.asked = partial(nullcontext, model)

    def log_probs(self, batch: Batch) -> torch.Tensor:
        """(B, T, V) in fp32."""
        import torch

        with torch.no_grad(), models.autocast(self.dtype), self.asked() as model:
            return model(**batch.inputs, use_cache=False).logits.float().log_softmax(dim=-1)


def retain_loss_everywhere(model, batch: Batch, vanilla: FrozenModel) -> torch.Tensor:
    """KL_Min's retain loss with KL at every position, padding and pictures included, summed per sample."""
    import torch.nn.functional as F

    log_p = model(**batch.inputs, use_cache=False).logits.float().log_softmax(dim=-1)  # (B, T, V)
    targets = batch.labels[:, 1:]
    ce = F.nll_loss(log_p[:, :-1][targets != IGNORE], targets[targets != IGNORE], reduction="none")
    return ce + F.kl_div(log_p, vanilla.log_probs(batch), log_target=True, reduction="batchmean")  # (N,)


KL_EVERYWHERE = FrozenModel, retain_loss_everywhere


# ---------------------------------------------------------------- --fisher_dtype bf16, fp16
def ratio_mask(
    forget: torch.Tensor, preserve: torch.Tensor, epsilon: float, threshold: float
) -> torch.Tensor:
    """The mask of one parameter from its mean squared gradients, in the precision that these have.

    ε and 0/0 stay what that makes of them: 0 and NaN, not salient, in fp16; 1, salient, in bf16.
    """
    return (forget + epsilon) / (preserve + epsilon) >= threshold

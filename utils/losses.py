"""What every objective is built from: log-likelihoods at the labelled tokens.

A method's loss function returns a vector of terms, one per labelled token (or one per sample); the training
loop takes the mean over all terms of an optimizer step, however the step is cut into forwards and processes.
So a loss never divides by how many there are. torch is imported where it is used: `--help` loads this file.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from utils.data import IGNORE

if TYPE_CHECKING:
    import torch

    from utils.collate import Batch


def label_logits(model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits where there are labels, and only there.

    Returns:
        logits (N, V) in fp32, targets (N,), and for each of the N labelled tokens the index of its sample,
        (N,).
    """
    targets = batch.labels[:, 1:]  # (B, T-1): the logits at t predict the token at t+1
    labelled = targets != IGNORE
    columns = labelled.any(dim=0).nonzero().squeeze(1)  # (K,) positions where some row has a label
    logits = model(**batch.inputs, use_cache=False, logits_to_keep=columns).logits  # (B, K, V)
    labelled = labelled[:, columns]
    return logits[labelled].float(), targets[:, columns][labelled], labelled.nonzero()[:, 0]


def label_states(model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The last hidden states from which the head makes the logits of `label_logits`: (N, H), and sample
    indices (N,). Raises ValueError where the model scales or caps what its head gives, as Gemma 2 does, so
    that states and head are not enough."""
    import torch

    seen = []
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0], output)))
    try:
        logits, _, rows = label_logits(model, batch)
    finally:
        hook.remove()
    labelled = batch.labels[:, 1:] != IGNORE
    states, output = (of[labelled[:, labelled.any(dim=0)]] for of in seen)
    if not torch.equal(output.float(), logits):
        raise ValueError("this model changes the logits behind its head")
    return states, rows


def token_nll(model, batch: Batch) -> torch.Tensor:
    """−log p(token) of every labelled token, (N,). Its mean is the cross-entropy CE."""
    return _nll(model, batch)[0]


def _nll(model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """token_nll, noted in the batch for --max_forget_loss whatever the loss makes of it; indices of samples,
    (N,)."""
    import torch.nn.functional as F

    logits, targets, rows = label_logits(model, batch)
    nll = F.cross_entropy(logits, targets, reduction="none")
    batch.nll = nll.detach()
    return nll, rows


def token_log_odds(model, batch: Batch) -> torch.Tensor:
    """log p(token) − log(1 − p(token)) of every labelled token, (N,).

    1 − p is what the other tokens have, so this is the token's logit less their logsumexp: exact also where p
    rounds to 1.
    """
    logits, targets, _ = label_logits(model, batch)
    at = targets[:, None]
    others = logits.scatter(1, at, float("-inf"))
    return logits.gather(1, at).squeeze(1) - others.logsumexp(dim=1)


def drawn_nll(model, batch: Batch, seed: int) -> torch.Tensor:
    """−log p of a token drawn from the model itself at the place of every labelled token, (N,).

    What is drawn follows from the seed and the sample's id, not from the batch around it.
    """
    import torch
    import torch.nn.functional as F

    logits, _, _ = label_logits(model, batch)
    draws = [
        torch.rand(n, generator=torch.Generator().manual_seed(zlib.crc32(f"{seed}/{id}".encode())))
        for id, n in zip(batch.ids, answer_lengths(batch).tolist())
    ]
    below = logits.detach().softmax(dim=1).cumsum(dim=1)  # (N, V)
    drawn = torch.searchsorted(below, torch.cat(draws)[:, None].to(below), right=True).squeeze(1)
    return F.cross_entropy(logits, drawn.clamp(max=logits.shape[1] - 1), reduction="none")


def sequence_log_prob(model, batch: Batch) -> torch.Tensor:
    """log p(answer | prompt) of every sample, the sum over its labelled tokens, (B,)."""
    nll, rows = _nll(model, batch)
    log_prob = -nll
    return log_prob.new_zeros(len(batch.ids)).index_add(0, rows, log_prob)


def answer_lengths(batch: Batch) -> torch.Tensor:
    """|y|: the number of labelled tokens of every sample, (B,)."""
    return (batch.labels[:, 1:] != IGNORE).sum(dim=1)

"""Nucleus sampling of many rows at once, with random numbers that belong to the row and not to the batch."""

from __future__ import annotations

import torch
from torch import Tensor

TRIES = 4  # numbers a token; the last one is kept for the sorted nucleus


def sample(logits: Tensor, temperature: Tensor, top_p: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a token a row from its nucleus: the fewest tokens whose probability reaches top_p (Holtzman et al. 2020).

    A token of the whole distribution is drawn and kept when the tokens more probable than it have less than top_p
    together, which is what it means to be in the nucleus; otherwise the next number is tried. Nothing is sorted. Rows
    that fail every try are drawn from their sorted nucleus, with a number of their own.

    Args:
        logits: float32 [B, V]; temperature, top_p: float32 [B]; uniforms: float32 [B, TRIES], in 0..1.

    Returns:
        Token ids int64 [B], and their log-probability without temperature and cut, float32 [B], nats.
    """
    probs = torch.softmax(logits / temperature[:, None], dim=-1)
    summed = probs.cumsum(-1)
    token = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    open_rows = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    for number in range(uniforms.shape[1] - 1):
        at = (uniforms[:, number] * summed[:, -1]).unsqueeze(1)
        drawn = torch.searchsorted(summed, at, right=True).clamp_(max=logits.shape[1] - 1)
        above = (probs * (probs > probs.gather(1, drawn))).sum(-1)
        token = torch.where(open_rows & (above < top_p), drawn[:, 0], token)
        open_rows &= above >= top_p
        if not bool(open_rows.any()):
            break
    rows = open_rows.nonzero()[:, 0]
    if len(rows):
        token[rows] = _from_sorted(probs[rows], top_p[rows], uniforms[rows, -1])
    raw = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1)
    return token, raw


def _from_sorted(probs: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    ordered, ids = probs.sort(-1, descending=True)
    summed = ordered.cumsum(-1)
    ordered = ordered * (summed - ordered < top_p[:, None])
    summed = ordered.cumsum(-1)
    at = torch.searchsorted(summed, (uniform * summed[:, -1])[:, None], right=True)
    return ids.gather(1, at.clamp_(max=probs.shape[1] - 1))[:, 0]

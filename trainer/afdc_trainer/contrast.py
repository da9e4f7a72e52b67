"""The supervised contrastive loss beside the label's: texts of one label near each other, those of others apart.

From a handful of examples the label's cross-entropy alone fits them by whatever tells them apart; this term asks the
state that the label is predicted from to be alike for all texts of a label (Khosla et al. 2020, arXiv 2004.11362;
beside cross-entropy with few labels: Gunel et al. 2021, arXiv 2011.01403).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

FAR = -1e9


def contrastive_loss(states: Tensor, labels: Tensor, rows: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Mean over the batch of -log softmax over the others of cosine / temperature, averaged over those of one's label.

    An entry without another of its label counts 0. Entries of the same row are not compared: they are the same text.

    Args:
        states: float32 [n, width].
        labels, rows: int64 [n], the label and the number of each entry's row.
        weights: float32 [n], what each entry counts.

    Returns:
        A scalar, the sum over entries divided by n.
    """
    unit = functional.normalize(states, dim=1)
    other = rows[:, None] != rows[None]
    alike = (labels[:, None] == labels[None]) & other
    scores = (unit @ unit.T / temperature).masked_fill(~other, FAR)
    logprobs = scores - torch.logsumexp(scores, dim=1, keepdim=True)
    count = alike.sum(1)
    each = -(logprobs * alike).sum(1) / count.clamp(min=1)
    return (each * weights).sum() / len(states)

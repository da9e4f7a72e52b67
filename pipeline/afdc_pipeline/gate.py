"""Which of two adapters is the better one, by gold that neither was trained on.

A handful of seeds moves accuracy by two points at a time, and an adapter that is handed out for one lucky answer is no
better. Their log loss weighs every answer by how far it was from right: a strictly proper score (Gneiting and Raftery
2007), which tells two labellers apart with fewer rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from afdc.result import Evaluation
from afdc.wording import loss


def ranks(evaluations: Sequence[Evaluation]) -> list[float]:
    """A number each, higher is better: minus the log loss where all have one, else their score (open tasks)."""
    losses = [one.log_loss for one in evaluations if one.log_loss is not None]
    return [-one for one in losses] if len(losses) == len(evaluations) else [one.score for one in evaluations]


def never_worse(new: Evaluation | None, best: Evaluation | None) -> bool:
    """Whether `new` may take the place of `best`. Without gold to compare them by every adapter may."""
    if new is None or best is None:
        return True
    rank, to_reach = ranks([new, best])
    return rank >= to_reach


def mean_passes(mean: Evaluation | None, best: Evaluation | None) -> bool:
    """Whether the mean of several adapters' weights may take the place of the best of them.

    It is refused where it is worse by both measures, its log loss and what it gets right: weights averaged over rounds
    err less than those of one (Wortsman et al. 2022, whose soups take in what does not lower the accuracy on held-out
    rows), so that one measure against it is more often the handful of seeds than the mean.
    """
    if mean is None or best is None:
        return True
    return never_worse(mean, best) or mean.score >= best.score


def describe(evaluation: Evaluation) -> str:
    """For example "93.8% of held-out gold, log loss 0.241"."""
    told = loss(evaluation)
    return f"{evaluation.score:.1%} of held-out gold" + (f", log loss {told}" if told else "")

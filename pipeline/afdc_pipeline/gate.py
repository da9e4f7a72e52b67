"""Which of two adapters is the better one, by gold that neither was trained on.

A handful of seeds moves accuracy by two points at a time, and an adapter that is handed out for one lucky answer is no
better. Their log loss weighs every answer by how far it was from right: a strictly proper score (Gneiting and Raftery
2007), which tells two labellers apart with fewer rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from afdc.result import Evaluation
from afdc.wording import loss
from afdc_pipeline import metrics

ROUNDING = 1e-9  # of shares


def ranks(evaluations: Sequence[Evaluation]) -> list[float]:
    """A number each, higher is better: minus the log loss where all have one, else their score (open tasks)."""
    losses = [one.log_loss for one in evaluations if one.log_loss is not None]
    return [-one for one in losses] if len(losses) == len(evaluations) else [one.score for one in evaluations]


def passes(new: Evaluation | None, best: Evaluation | None) -> bool:
    """Whether `new` may take the place of `best`. Without gold to compare them by every adapter may.

    It may where its log loss is no higher, and else where it has not fewer right by more than one answer. Of 16 seeds
    one answer says nothing: an adapter that happened to get all of them right would never be replaced.
    """
    if new is None or best is None:
        return True
    return leads(new, best) or best.score - new.score <= 1 / new.n + ROUNDING


def clearly_behind(one: Evaluation, other: Evaluation) -> bool:
    """Whether it has a higher log loss and fewer right, by more than one standard error of the difference.

    The one-standard-error rule: Breiman et al. 1984.
    """
    return not leads(one, other) and other.score - one.score > _standard_error(one, other)


def leads(new: Evaluation, best: Evaluation) -> bool:
    """Whether `new` ranks at least as high."""
    rank, to_reach = ranks([new, best])
    return rank >= to_reach


def best_of(evaluations: Iterable[Evaluation | None]) -> Evaluation | None:
    """The highest, the last of equals: what an adapter is compared with, so that small steps down do not add up."""
    best = None
    for one in evaluations:
        if one is not None and (best is None or leads(one, best)):
            best = one
    return best


def _standard_error(one: Evaluation, other: Evaluation) -> float:
    """Of the difference of two shares, with a right and a wrong answer added to each (Agresti and Caffo 2000).

    By the shares alone it would be 0 for two that get everything right.
    """
    return math.sqrt(sum(_variance(each) for each in (one, other)))


def _variance(evaluation: Evaluation) -> float:
    share = metrics.smoothed(evaluation.score, evaluation.n)
    return share * (1 - share) / (evaluation.n + 2)


def remark(new: Evaluation | None, best: Evaluation | None) -> str:
    """What the report says of an adapter that passes although it does not lead; else nothing."""
    if new is None or best is None or leads(new, best):
        return ""
    return f"behind on held-out gold ({describe(best)} before it), by no more than one answer of {new.n}"


def describe(evaluation: Evaluation) -> str:
    """For example "93.8% of held-out gold, log loss 0.241"."""
    told = loss(evaluation)
    return f"{evaluation.score:.1%} of held-out gold" + (f", log loss {told}" if told else "")

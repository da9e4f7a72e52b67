"""When self-training ends: one function a rule, each answering with a sentence or None.

A history is the results by round so far, round 0 first; round 0 is before self-training, and T counts those after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afdc.config import RunConfig
from afdc.result import RoundResult
from afdc_pipeline import gate

History = Sequence[RoundResult]


@dataclass(frozen=True, slots=True)
class Spent:
    """What the run has used so far, over all its starts: tokens read and written, and seconds at work."""

    tokens: int = 0
    seconds: float = 0.0


def stop_reason(history: History, config: RunConfig, spent: Spent) -> str | None:
    """Why there is no further round, or None to go on. Of several reasons the first of DESIGN's order is given."""
    loop = config.loop
    reasons = (
        rounds_done(history, loop.rounds),
        no_gain(history, loop.patience),
        target_reached(history, config.select.target_rows),
        labels_settled(history, loop.min_flip_rate),
        tokens_spent(spent, loop.token_budget),
        time_spent(spent, loop.time_budget_s),
    )
    return next((reason for reason in reasons if reason), None)


def rounds_done(history: History, rounds: int) -> str | None:
    """T fine-tune-and-relabel rounds are done; T = 0 ends after round 0."""
    done = history[-1].round if history else -1
    return f"rounds: all {rounds} self-training rounds are done" if done >= rounds else None


def no_gain(history: History, patience: int) -> str | None:
    """The last `patience` rounds did not beat the best one before them on held-out gold. Without such gold: never."""
    known = [result.holdout for result in history if result.holdout is not None]
    if len(known) <= patience:
        return None
    ranks = gate.ranks(known)
    best = max(ranks[:-patience])
    if max(ranks[-patience:]) > best:
        return None
    told = gate.describe(known[ranks.index(best)])
    return f"no_gain: {patience} rounds without gain on held-out gold (best {told})"


def target_reached(history: History, target_rows: int | None) -> str | None:
    """D2 has the rows that were asked for, chosen with scores of a self-trained model (round 1 or later)."""
    if target_rows is None or not history or history[-1].round < 1 or history[-1].selected < target_rows:
        return None
    return f"target_rows: {history[-1].selected} rows are selected and {target_rows} were asked for"


def labels_settled(history: History, min_flip_rate: float) -> str | None:
    """Fewer than epsilon of D1's labels changed in the last relabelling; 0 turns the rule off."""
    rate = history[-1].flip_rate if history else None
    if rate is None or rate >= min_flip_rate:
        return None
    return f"flip_rate: {rate:.2%} of the labels changed, less than {min_flip_rate:.2%}"


def tokens_spent(spent: Spent, budget: int | None) -> str | None:
    if budget is None or spent.tokens < budget:
        return None
    return f"token_budget: {spent.tokens} tokens are spent and {budget} were allowed"


def time_spent(spent: Spent, budget_s: float | None) -> str | None:
    if budget_s is None or spent.seconds < budget_s:
        return None
    return f"time_budget: {spent.seconds:.0f} s are spent and {budget_s:.0f} s were allowed"


def flip_rate(old_labels: NDArray[np.integer], new_labels: NDArray[np.integer]) -> float | None:
    """Share of candidates whose label changed, 0..1, over those scored both times (label >= 0); None without any.

    Raises:
        ValueError: the two do not have the same length: they must be in the same order of candidates.
    """
    old, new = np.asarray(old_labels), np.asarray(new_labels)
    if old.shape != new.shape:
        raise ValueError(f"labels of {len(old)} and {len(new)} candidates cannot be compared")
    both = (old >= 0) & (new >= 0)
    return float(np.mean(old[both] != new[both])) if both.any() else None

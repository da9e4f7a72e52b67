"""When further augment rounds are drawn because D2 falls short of `select.target_rows` (docs/decisions/0008).

One function a rule, each answering with why it ends or None. "Extra" rounds come after the planned `augment.rounds`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from afdc.config import RunConfig, SelectConfig
from afdc.task import Task
from afdc_pipeline.stopping import Spent

MIN_YIELD = 0.02  # new rows of D2 by text drawn, below which drawing goes on for little
MIN_BOUND = 10
SLACK = 2  # yields fall as duplicates add up
BUDGET_SHARE = 0.5  # the rest is for the self-training rounds


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the job stands before the next extra round.

    Attributes:
        selected: rows of D2 now.
        first: drawn rows of D2 before the first extra round of the job; real texts do not count.
        extra: extra rounds of the job so far.
        drawn: texts that one round draws.
        gained: rows that the last extra round added; None where the labellers have not seen one yet.
    """

    selected: int
    first: int
    extra: int
    drawn: int
    gained: int | None = None


def end_of_growth(standing: Standing, config: RunConfig, spent: Spent, ceiling: int | None) -> str | None:
    """Why no further augment round is drawn, or None to draw one. Only asked where there is a target.

    Args:
        ceiling: see `row_ceiling`.
    """
    target = config.select.target_rows
    if target is None or standing.selected >= target:
        return "the target is reached"
    reasons = (
        nothing_to_draw(config, standing.drawn),
        caps_reached(target, ceiling),
        too_little(standing),
        bound_reached(standing, bound(target, config.augment.rounds, standing.first)),
        budget_half_spent(spent, config),
    )
    return next((reason for reason in reasons if reason), None)


def nothing_to_draw(config: RunConfig, drawn: int) -> str | None:
    """With `augment.rounds = 0` the user wants no generated text."""
    return "there is nothing to draw" if drawn == 0 or config.augment.rounds == 0 else None


def caps_reached(target: int, ceiling: int | None) -> str | None:
    """The caps of the selection make the target unreachable, whatever is drawn."""
    return f"the caps of select allow {ceiling} rows" if ceiling is not None and ceiling < target else None


def too_little(standing: Standing) -> str | None:
    """A round that left fewer rows does not end it: the balance between labels has shifted, and the next may add."""
    gained = standing.gained
    if gained is None or gained < 0 or gained >= MIN_YIELD * standing.drawn:
        return None
    return f"the last one added {gained} rows for {standing.drawn} drawn texts"


def bound_reached(standing: Standing, limit: int) -> str | None:
    return f"the bound of {limit} further rounds is reached" if standing.extra >= limit else None


def budget_half_spent(spent: Spent, config: RunConfig) -> str | None:
    """Half of a budget is left for the rounds of self-training."""
    loop = config.loop
    if loop.token_budget is not None and spent.tokens >= BUDGET_SHARE * loop.token_budget:
        return "half of the token budget is spent"
    if loop.time_budget_s is not None and spent.seconds >= BUDGET_SHARE * loop.time_budget_s:
        return "half of the time budget is spent"
    return None


def rounds_needed(target: int, rounds: int, selected: float) -> int:
    """Extra rounds to the target at the yield of the first `rounds`; 0 where these yielded nothing to reckon with."""
    return max(math.ceil(rounds * target / selected) - rounds, 0) if selected > 0 else 0


def bound(target: int, rounds: int, first: int) -> int:
    """Extra rounds that a job may make: some, or twice as many as the first yield asks for."""
    return max(MIN_BOUND, SLACK * rounds_needed(target, rounds, first))


def row_ceiling(select: SelectConfig, task: Task, parents: int, *, unlabeled: bool) -> int | None:
    """Rows that the caps allow in D2; None without a cap. The cap of a seed leaves real texts alone."""
    labels = max(len(task.names), 1)  # the texts of an open task are of one class
    caps = [] if select.per_label is None else [select.per_label * labels]
    if select.per_seed is not None and not unlabeled:
        caps.append(select.per_seed * parents)
    return min(caps, default=None)


def describe(begun: int, made: int, selected: int, target: int, reason: str) -> str:
    """What came of it, for the round's note.

    Args:
        begun: rows of D2 before the round drew `made` extra rounds; `selected`: rows after them.
    """
    if not made:
        return f"target_rows: {selected} of {target} rows, and no further augment round: {reason}"
    rounds = "1 further augment round" if made == 1 else f"{made} further augment rounds"
    return f"target_rows: {begun} rows became {selected} of {target} in {rounds}: {reason}"

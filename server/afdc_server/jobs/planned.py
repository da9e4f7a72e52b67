"""How far a job is: its plan, and what the ledger says is done. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PART_OF = {
    "generate": "generate",
    "filter": "generate",
    "train-": "train",
    "score-e": "encode",
    "score-": "score",
    "answer-": "score",
    "out-of-fold-": "score",
}
"""Beginning of a stage's name -> part of the plan; the first that fits."""
ALMOST = 0.99


@dataclass(frozen=True)
class Planned:
    """`seconds` by part of the plan; `stages` that each part is expected to have."""

    seconds: Mapping[str, float]
    stages: Mapping[str, int]


def part_of(stage: str) -> str | None:
    """The part of the plan that a stage belongs to, or None for the short ones."""
    return next((part for start, part in PART_OF.items() if stage.startswith(start)), None)


def fraction(plan: Planned, finished: Iterable[str], current: str = "", current_share: float = 0.0) -> float:
    """Share of the job that is done, 0..1, by planned seconds.

    Args:
        finished: names of the stages that are done.
        current: the stage under way, and how much of it is done, 0..1.
    """
    total = sum(plan.seconds.get(part, 0.0) for part in plan.stages)
    if total <= 0:
        return 0.0
    done = dict.fromkeys(plan.stages, 0.0)
    for stage in finished:
        part = part_of(stage)
        if part in done:
            done[part] += 1
    part = part_of(current)
    if part in done:
        done[part] += min(max(current_share, 0.0), 1.0)
    spent = sum(plan.seconds.get(p, 0.0) * min(1.0, n / max(plan.stages[p], 1)) for p, n in done.items())
    return min(ALMOST, spent / total)


def eta_seconds(share: float, elapsed_s: float) -> float | None:
    """Seconds still to go, when the rest goes as the part that is done; None while too little is."""
    return elapsed_s * (1 - share) / share if share >= 0.02 else None

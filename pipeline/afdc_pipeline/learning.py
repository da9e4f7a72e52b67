"""Which rows the adapters of a round learn from."""

from __future__ import annotations

from collections.abc import Sequence

from afdc.config import RunConfig
from afdc.task import Task

MIN_SHARE = 1e-3  # of a soft target; the trainer asks for more


def learns_from_all(config: RunConfig, task: Task) -> bool:
    """Whether they learn from every scored row by its distribution, and not from those of D2 alone.

    What is left out of the data set as doubtful has a broad distribution: it teaches what looks like two labels, and
    that an adapter must not be sure of it.
    """
    if task.is_open or not config.select.soft_targets:
        return False
    return config.encoder.labeller if config.train.all_rows is None else config.train.all_rows


def soft_targets(distribution: Sequence[float]) -> dict[int, float]:
    """Label index -> probability, without those below MIN_SHARE: a row grows with its doubt, not with the label set."""
    least = min(MIN_SHARE, max(distribution))
    return {label: share for label, share in enumerate(distribution) if share >= least}

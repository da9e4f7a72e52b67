"""Which rows are sure enough to be handed out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from afdc_pipeline.select.columns import Columns, Rows
from afdc_pipeline.select.confidence import most_confident


@dataclass(frozen=True)
class Trust:
    """How sure is sure enough. The default lets every row pass.

    Attributes:
        error: share of gold labels that the adapter gets wrong, 0..1; as large a share of the rows falls away, the
            least confident first (STraTA: Vu et al. 2021, arXiv 2109.06270, section 3).
        precision: wanted mean confidence of the rows that stay, 0..1: of calibrated labellers that is the share of
            right labels that they expect. At most half of the rows fall away for it: labellers that are sure of nothing
            would leave no data set.
    """

    error: float = 0.0
    precision: float = 0.0


def trusted(columns: Columns, rows: Rows, trust: Trust) -> tuple[Rows, Rows]:
    """`rows` parted into those that can be trusted and the others."""
    ranked = most_confident(columns, rows)
    mean = np.cumsum(columns.confidence[ranked], dtype=np.float64) / np.arange(1, len(ranked) + 1)
    enough = int(np.searchsorted(-mean, -trust.precision, side="right"))  # the running mean only falls
    count = min(len(ranked) - int(trust.error * len(ranked)), max(enough, len(ranked) - len(ranked) // 2))
    return ranked[:count], ranked[count:]

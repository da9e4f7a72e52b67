"""The rule of the paper, and the order it leaves open."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from afdc_pipeline.select.columns import Columns, Rows, sorted_by


def above(columns: Columns, threshold: float) -> NDArray[np.bool_]:
    """c > tau, strictly, [n]; False where there is no confidence. Compared in float32, the columns' precision."""
    return columns.confidence > np.float32(threshold)


def most_confident(columns: Columns, rows: Rows) -> Rows:
    """Largest max_y p(y) first."""
    return sorted_by(columns, rows, -columns.confidence[rows])

"""Query by committee: rows that the adapters disagree on first (Seung et al. 1992)."""

from __future__ import annotations

from afdc_pipeline.select.columns import Columns, Rows, sorted_by


def most_disputed(columns: Columns, rows: Rows) -> Rows:
    """Largest disagreement first. A committee of one never disagrees, and then only the tie order is left."""
    return sorted_by(columns, rows, -columns.disagreement[rows])

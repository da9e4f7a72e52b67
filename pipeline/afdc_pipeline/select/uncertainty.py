"""Uncertainty sampling: rows that the labeller is least sure of first (Lewis and Gale 1994; Settles 2009, 3.1)."""

from __future__ import annotations

from afdc_pipeline.select.columns import Columns, Rows, sorted_by


def least_confident(columns: Columns, rows: Rows) -> Rows:
    """Smallest max_y p(y) first."""
    return sorted_by(columns, rows, columns.confidence[rows])


def smallest_margin(columns: Columns, rows: Rows) -> Rows:
    """Smallest p(1st) - p(2nd) first (Scheffer et al. 2001)."""
    return sorted_by(columns, rows, columns.margin[rows])


def highest_entropy(columns: Columns, rows: Rows) -> Rows:
    """Largest -sum_y p(y) ln p(y) first."""
    return sorted_by(columns, rows, -columns.entropy[rows])

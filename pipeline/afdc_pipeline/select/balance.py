"""Caps on groups of rows: the variants of one seed, the rows of one label."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from afdc_pipeline.select.columns import Int32, Rows


def rank_in_group(groups: Int32) -> Rows:
    """Position of each entry among those of its own group, 0 first, in the order given; [n]."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])[: len(ordered)]
    lengths = np.diff(np.r_[starts, len(ordered)])
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[order] = np.arange(len(ordered)) - np.repeat(starts, lengths)
    return ranks


def balance_cap(counts: NDArray[np.integer]) -> int:
    """Most rows that one label may have: the geometric mean of the counts, rounded up, over labels that have rows.

    Why this mean: docs/decisions/0003-balance.md.
    """
    present = counts[counts > 0]
    if not len(present):
        return 0
    # The tiny allowance keeps exp(log(n)) from being rounded up to n + 1.
    return math.ceil(float(np.exp(np.log(present).mean())) * (1 - 1e-12))


def label_cap(counts: NDArray[np.integer], *, balance: bool, per_label: int | None) -> int:
    """The tighter of the balance cap and the caller's own; without either, no label can exceed it."""
    caps = [int(counts.sum())]
    if balance:
        caps.append(balance_cap(counts))
    if per_label is not None:
        caps.append(per_label)
    return min(caps)


def round_robin(label: Int32) -> Rows:
    """Order that takes the first row of every label, then the second of every label, and so on; [n] indices."""
    return np.argsort(rank_in_group(label), kind="stable")

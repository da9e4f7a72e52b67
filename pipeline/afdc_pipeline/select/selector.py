"""Which scored candidates become training rows: D1 -> D2."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from afdc.config import SelectConfig
from afdc_pipeline.select import confidence, uncertainty
from afdc_pipeline.select.balance import label_cap, rank_in_group, round_robin
from afdc_pipeline.select.columns import Columns, Reason, Rows, Selection
from afdc_pipeline.select.committee import most_disputed
from afdc_pipeline.select.diversity import Features, most_diverse
from afdc_pipeline.select.trust import Trust, trusted

EVERY = Trust()
RANKINGS = {
    "confidence": confidence.most_confident,
    "least_confidence": uncertainty.least_confident,
    "margin": uncertainty.smallest_margin,
    "entropy": uncertainty.highest_entropy,
    "committee": most_disputed,
}


def select(
    columns: Columns, config: SelectConfig, n_labels: int, features: Features | None = None, trust: Trust = EVERY
) -> Selection:
    """Apply the steps of docs/algorithm.md in order: reject, threshold, agreement, trust, rank, caps, target.

    Time O(n log n) and memory O(n); the same columns in any order give the same rows.

    Args:
        features: for strategy "diversity" only: unit vectors [n, dims], or a function that makes them for row indices.
        trust: which of the rows left by then are sure enough.

    Raises:
        ValueError: strategy "diversity" without features.
    """
    reason = _filtered(columns, config)
    _, doubtful = trusted(columns, np.flatnonzero(reason == Reason.KEPT), trust)
    reason[doubtful] = Reason.NOT_TRUSTED
    ranked = _ranked(columns, config, n_labels, features, np.flatnonzero(reason == Reason.KEPT))
    ranked = _cap_seeds(columns, config, ranked, reason)
    ranked = _cap_labels(columns, config, n_labels, ranked, reason)
    _cap_total(columns, config, ranked, reason)
    keep = reason == Reason.KEPT
    weight = np.where(keep, columns.confidence if config.weighted else np.float32(1), np.float32(0))
    return Selection(keep=keep, reason=reason, weight=weight.astype(np.float32))


def scaled(config: SelectConfig, share: float) -> SelectConfig:
    """The caps of a share (0..1) of the texts: what they cut is as large a part of these as of all."""
    caps = {"target_rows": config.target_rows, "per_label": config.per_label}
    return config.model_copy(update={name: max(round(cap * share), 1) for name, cap in caps.items() if cap is not None})


def _filtered(columns: Columns, config: SelectConfig) -> NDArray[np.uint8]:
    """Reasons that concern one row alone. The first that applies counts."""
    unscored = columns.rejected | (columns.label < 0)
    low = ~confidence.above(columns, config.threshold)
    other = (columns.intended >= 0) & (columns.intended != columns.label) & (config.agreement is not False)
    reason = np.full(len(columns), Reason.KEPT, dtype=np.uint8)
    reason[columns.divided & config.unanimous] = Reason.LABELLERS_DISAGREE
    reason[other] = Reason.DISAGREES_WITH_INTENDED
    reason[low] = Reason.BELOW_THRESHOLD
    reason[unscored] = Reason.ENGINE_REJECTED
    return reason


def _ranked(columns: Columns, config: SelectConfig, n_labels: int, features: Features | None, rows: Rows) -> Rows:
    """`rows`, the most valuable first."""
    if config.strategy != "diversity":
        return RANKINGS[config.strategy](columns, rows)
    if features is None:
        raise ValueError("strategy 'diversity' needs features; pass hashed_features of the texts")
    return most_diverse(columns, rows, n_labels, features)


def _cap_seeds(columns: Columns, config: SelectConfig, ranked: Rows, reason: NDArray[np.uint8]) -> Rows:
    if config.per_seed is None:
        return ranked
    parent = columns.parent[ranked]
    return _drop(ranked, (parent >= 0) & (rank_in_group(parent) >= config.per_seed), Reason.SEED_CAP, reason)


def _cap_labels(columns: Columns, config: SelectConfig, n_labels: int, ranked: Rows, reason: NDArray[np.uint8]) -> Rows:
    label = columns.label[ranked]
    cap = label_cap(np.bincount(label, minlength=n_labels), balance=config.balance, per_label=config.per_label)
    return _drop(ranked, rank_in_group(label) >= cap, _budget_reason(config, Reason.LABEL_CAP), reason)


def _cap_total(columns: Columns, config: SelectConfig, ranked: Rows, reason: NDArray[np.uint8]) -> None:
    """Cut at the target. With balance, labels take turns, so that what is cut is taken from the fullest."""
    if config.target_rows is None:
        return
    order = ranked[round_robin(columns.label[ranked])] if config.balance else ranked
    over = np.arange(len(order)) >= config.target_rows
    _drop(order, over, _budget_reason(config, Reason.OVER_TARGET), reason)


def _budget_reason(config: SelectConfig, reason: Reason) -> Reason:
    """Under the diversity strategy a row that misses a budget was nearer to the chosen ones than others."""
    return Reason.NOT_DIVERSE if config.strategy == "diversity" else reason


def _drop(ranked: Rows, out: NDArray[np.bool_], why: Reason, reason: NDArray[np.uint8]) -> Rows:
    reason[ranked[out]] = why
    return ranked[~out]

"""What a person's review of a row would tell, so that the rows that are worth the time come first.

Active-learning measures, put together as chances that the label is wrong: a small margin (Scheffer et al. 2001),
labellers that disagree (query by committee: Seung et al. 1992; Jensen-Shannon divergence: McCallum and Nigam 1998), a
text scored as another label than it was written for, and a label that changed from round to round. The weights are
fixed by hand: they order rows and measure nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from afdc_pipeline.seams import FloatArray
from afdc_pipeline.select.columns import REASONS, Reason

Flags = NDArray[np.bool_]

REVIEWED_STATES = ("accepted", "relabelled", "rejected")
GOLD_STATE, GOLD_SOURCE = "gold", "seed"
DIVIDED_REASON = REASONS[Reason.LABELLERS_DISAGREE]
DIVIDED_WEIGHT = 0.5
OFF_TARGET_WEIGHT = 0.5
FLIP_WEIGHT = 0.25
LN_2 = 0.6931471805599453
"""Jensen-Shannon divergence, nats, of two labellers that are sure of different labels."""
LABEL_COLUMNS = ("source", "label", "intended", "margin", "disagreement", "label_history", "reason", "review_state")
ANSWER_COLUMNS = ("source", "margin", "disagreement", "answer_history", "reason", "review_state")


@dataclass(frozen=True, slots=True)
class Signals:
    """What is known of rows; every array is [n].

    Attributes:
        margin: difference between the two largest probabilities, 0..1; NaN where the row was never scored.
        divided: how far the committee is apart, 0..1; 1 where two kinds of labellers gave it different labels.
        off_target: it was written for one label and scored as another.
        flips: share of the rounds behind the first in which its label changed, 0..1.
    """

    margin: FloatArray
    divided: FloatArray
    off_target: Flags
    flips: FloatArray


def review_value(signals: Signals) -> FloatArray:
    """What a review of each row would tell, [n], in 0..1; 0 for rows without scores.

    One minus the product of (1 - w s) over the signals s with weights w: 1 for the margin's doubt (1 - margin),
    `DIVIDED_WEIGHT`, `OFF_TARGET_WEIGHT` and `FLIP_WEIGHT`. More doubt of any kind never lowers it.
    """
    calm = np.clip(signals.margin, 0.0, 1.0)
    calm = calm * (1.0 - DIVIDED_WEIGHT * signals.divided)
    calm = calm * np.where(signals.off_target, 1.0 - OFF_TARGET_WEIGHT, 1.0)
    calm = calm * (1.0 - FLIP_WEIGHT * signals.flips)
    return np.asarray(np.where(np.isnan(signals.margin), 0.0, 1.0 - calm))


def value_columns(*, is_open: bool) -> tuple[str, ...]:
    """Columns that `row_values` reads."""
    return ANSWER_COLUMNS if is_open else LABEL_COLUMNS


def row_values(rows: pa.RecordBatch) -> FloatArray:
    """`review_value` of stored rows, [n]; 0 for gold seeds and for rows that a person has judged."""
    return np.asarray(np.where(is_settled(rows), 0.0, review_value(signals_of(rows))))


def is_reviewed(rows: pa.RecordBatch) -> Flags:
    """Whether a person has judged the row, [n]."""
    return _flags(pc.is_in(rows.column("review_state"), pa.array(REVIEWED_STATES)))


def is_settled(rows: pa.RecordBatch) -> Flags:
    """Whether nothing is to be learnt from a review: gold seeds, and rows that were reviewed, [n]."""
    is_gold = _flags(pc.equal(rows.column("review_state"), GOLD_STATE))
    return is_reviewed(rows) | is_gold | _flags(pc.equal(rows.column("source"), GOLD_SOURCE))


def signals_of(rows: pa.RecordBatch) -> Signals:
    """Read the signals off stored rows, of a task with labels or of an open one."""
    names = set(rows.schema.names)
    none = np.zeros(len(rows), dtype=np.bool_)
    is_open = "answer_history" in names
    return Signals(
        margin=rows.column("margin").to_numpy(zero_copy_only=False).astype(np.float64),
        divided=_divided(rows),
        off_target=none if is_open else _flags(pc.not_equal(rows.column("intended"), rows.column("label"))),
        flips=_flips(rows.column("answer_history" if is_open else "label_history")),
    )


def _divided(rows: pa.RecordBatch) -> FloatArray:
    """The committee's divergence over that of two labellers who are sure of different labels, 1 at most."""
    kinds = _flags(pc.equal(rows.column("reason"), DIVIDED_REASON)).astype(np.float64)
    if "disagreement" not in rows.schema.names:  # a data set of an earlier version
        return kinds
    apart = rows.column("disagreement").to_numpy(zero_copy_only=False).astype(np.float64)
    return np.asarray(np.maximum(kinds, np.clip(np.nan_to_num(apart) / LN_2, 0.0, 1.0)))


def _flips(histories: pa.ListArray) -> FloatArray:
    """Changes between neighbouring rounds that both have a label, over how many such pairs there are."""
    row = pc.list_parent_indices(histories).to_numpy(zero_copy_only=False)
    label = histories.flatten()
    known = _flags(pc.not_equal(label, ""))
    before, after = label.slice(0, max(0, len(label) - 1)), label.slice(1)
    is_pair = (row[1:] == row[:-1]) & known[1:] & known[:-1]
    changed = is_pair & _flags(pc.not_equal(before, after))
    pairs = np.bincount(row[1:][is_pair], minlength=len(histories))
    changes = np.bincount(row[1:][changed], minlength=len(histories))
    return np.asarray(changes / np.maximum(pairs, 1))


def _flags(found: pa.Array) -> Flags:
    """As bool; null counts as False."""
    return np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False), dtype=np.bool_)

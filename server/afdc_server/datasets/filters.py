"""Which rows a client wants to see, and the pages they come in."""

from __future__ import annotations

import heapq
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from afdc.errors import InputError
from afdc.wire.datasets import ReviewFilter
from afdc_server.datasets.reading import RowFiles
from afdc_server.datasets.value import Flags, is_reviewed, row_values, value_columns


@dataclass(frozen=True, slots=True)
class RowFilter:
    """All that are given must hold. `q`: a part of the text in any letter case; the bounds of confidence are included.

    A row without a confidence is outside every bound.
    """

    label: str | None = None
    source: str | None = None
    reason: str | None = None
    min_confidence: float | None = None
    max_confidence: float | None = None
    q: str | None = None
    review: ReviewFilter | None = None

    @property
    def is_empty(self) -> bool:
        """Whether every row passes."""
        return self == RowFilter()

    def columns(self, *, is_open: bool) -> list[str]:
        """Columns that `mask` reads, and for review=needed those of the value."""
        names = {
            "answer" if is_open else "label": self.label is not None,
            "source": self.source is not None,
            "reason": self.reason is not None,
            "confidence": self.min_confidence is not None or self.max_confidence is not None,
            "text": bool(self.q),
            "review_state": self.review is not None,
        }
        needed = value_columns(is_open=is_open) if self.review == "needed" else ()
        return sorted({*(name for name, is_used in names.items() if is_used), *needed})

    def mask(self, rows: pa.RecordBatch) -> Flags:
        """Which rows pass, [n]. The order of review=needed, and what it leaves out, is `most_valuable`'s."""
        passed = np.ones(len(rows), dtype=np.bool_)
        for found in self._conditions(rows):
            passed &= np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False), dtype=np.bool_)
        return passed & is_reviewed(rows) if self.review == "done" else passed

    def _conditions(self, rows: pa.RecordBatch) -> Iterator[pa.Array]:
        label = "answer" if "answer" in rows.schema.names else "label"
        for name, value in ((label, self.label), ("source", self.source), ("reason", self.reason)):
            if value is not None:
                yield pc.equal(rows.column(name), value)
        if self.min_confidence is not None:
            yield pc.greater_equal(rows.column("confidence"), self.min_confidence)
        if self.max_confidence is not None:
            yield pc.less_equal(rows.column("confidence"), self.max_confidence)
        if self.q:
            wanted = unicodedata.normalize("NFC", self.q)  # as texts are stored
            yield pc.match_substring(rows.column("text"), wanted, ignore_case=True)


def find_rows(files: RowFiles, wanted: RowFilter, after: int, limit: int, *, is_open: bool) -> list[int]:
    """Numbers of the first `limit` rows behind row `after` (-1: from the first on) that pass, in the page's order.

    Raises:
        InputError: review=needed, and `after` is no row. StorageError: the rows cannot be read.
    """
    if wanted.review == "needed":
        return most_valuable(files, wanted, after, limit, is_open=is_open)
    numbers: list[int] = []
    for first, batch in files.batches(wanted.columns(is_open=is_open), after + 1):
        numbers += (np.flatnonzero(wanted.mask(batch)) + first).tolist()
        if len(numbers) >= limit:
            break
    return numbers[:limit]


def most_valuable(files: RowFiles, wanted: RowFilter, after: int, limit: int, *, is_open: bool) -> list[int]:
    """The rows that a review tells most about (`value.row_values`), the earlier of equals first; those with 0 left out.

    One pass over the columns that it needs, with `limit` rows in memory.
    """
    columns = wanted.columns(is_open=is_open)
    last = _key_of(files, after, columns)
    best: list[tuple[float, int]] = []  # (-value, number), smallest first
    for first, batch in files.batches(columns):
        values = row_values(batch)
        passed = replace(wanted, review=None).mask(batch) & (values > 0)
        if len(best) == limit:
            passed &= values > -best[-1][0]
        keys = [(-float(values[at]), first + int(at)) for at in np.flatnonzero(passed)]
        best = heapq.nsmallest(limit, [*best, *(key for key in keys if last is None or key > last)])
    return [number for _, number in best]


def _key_of(files: RowFiles, number: int, columns: list[str]) -> tuple[float, int] | None:
    if number < 0:
        return None
    found = files.take([number], columns).combine_chunks().to_batches()
    if not found:
        raise InputError(f"there is no row {number} to go on behind", remedy="Use the last_id of a page of this split")
    return -float(row_values(found[0])[0]), number

"""Pages of rows, as the API tells of them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from afdc.wire.common import Page
from afdc.wire.datasets import Row, Split
from afdc_server.artifacts import ArtifactStore
from afdc_server.datasets.filters import RowFilter, find_rows
from afdc_server.datasets.reading import to_rows
from afdc_server.datasets.store import StoredDataset
from afdc_server.datasets.value import row_values

RENAMED = {"answer": "label", "answer_history": "label_history"}


def rows_page(
    dataset: StoredDataset, artifacts: ArtifactStore, split: Split, wanted: RowFilter, after: int, limit: int
) -> Page[Row]:
    """Rows of a split behind row `after`; -1: from the first on. The cursor is the row's number in the split.

    Raises:
        InputError: review=needed, and `after` is no row. StorageError: the rows cannot be read.
    """
    files = dataset.rows(artifacts, split)
    if wanted.is_empty:
        numbers = list(range(after + 1, min(after + limit + 2, dataset.size(split))))
    else:
        numbers = find_rows(files, wanted, after, limit + 1, is_open=dataset.task.is_open)
    shown = numbers[:limit]
    return Page[Row](
        data=_wire_rows(files.take(shown)),
        has_more=len(numbers) > limit,
        first_id=str(shown[0]) if shown else None,
        last_id=str(shown[-1]) if shown else None,
    )


def _wire_rows(table: pa.Table) -> list[Row]:
    rows: list[Row] = []
    for batch in table.combine_chunks().to_batches():
        values = row_values(batch).tolist()
        rows += [_wire_row(row, value) for row, value in zip(to_rows(batch), values, strict=True)]
    return rows


def _wire_row(row: dict[str, Any], value: float) -> Row:
    fields = {RENAMED.get(name, name): field for name, field in row.items()}
    lists = {name: fields.get(name) or [] for name in ("distribution", "label_history", "seed_ids")}
    return Row.model_validate({**fields, **lists, "review_value": value})

"""What people said about rows, as gold examples for the next job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Row, select

from afdc.task import Example, text_key
from afdc_server.datasets.store import get_dataset
from afdc_server.db.schema import reviews


def reviewed_examples(connection: Connection, tenant: str, dataset_ids: Sequence[str]) -> list[Example]:
    """Accepted and relabelled rows of the data sets and of all versions that they were made from.

    The latest decision about a row counts: one that was rejected last is no example. Of two rows with one text the one
    that was judged last counts. The examples come in the order of their decisions; `id` is that of the row.

    Raises:
        NotFoundError: one of the data sets is not this tenant's.
    """
    versions: dict[str, int] = {}
    for id in dataset_ids:
        versions |= _chain(connection, tenant, id)
    latest: dict[str, Row[Any]] = {}
    for said in _said(connection, versions):
        latest.pop(said.row, None)  # so that the order is that of the last word
        latest[said.row] = said
    by_text: dict[str, Row[Any]] = {}
    for said in latest.values():
        if said.label is None:
            continue
        text = text_key(said.text)
        by_text.pop(text, None)
        by_text[text] = said
    return [Example(id=said.row, text=said.text, label=said.label) for said in by_text.values()]


def _chain(connection: Connection, tenant: str, id: str) -> dict[str, int]:
    """Numbers of a version and of those that it was made from, by id."""
    versions: dict[str, int] = {}
    next_id: str | None = id
    while next_id is not None and next_id not in versions:
        dataset = get_dataset(connection, tenant, next_id).wire
        versions[next_id], next_id = dataset.version, dataset.parent
    return versions


def _said(connection: Connection, versions: dict[str, int]) -> Iterator[Row[Any]]:
    """Every decision, the latest last."""
    query = select(reviews).where(reviews.c.dataset.in_(sorted(versions)))
    found = list(connection.execute(query))
    return iter(sorted(found, key=lambda said: (said.created_at, versions[said.dataset], said.row)))

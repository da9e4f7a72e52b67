"""Cursor pages over tables whose ids sort by time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, Select, Table

from afdc.wire.common import Page
from afdc_server.api.deps import PageQuery

T = TypeVar("T")


def fetch(connection: Connection, query: Select[Any], table: Table, page: PageQuery) -> list[Row[Any]]:
    """Newest first, one row more than asked for: it says whether there is a next page."""
    if page.after:
        query = query.where(table.c.id < page.after)
    return list(connection.execute(query.order_by(table.c.id.desc()).limit(page.limit + 1)))


def make_page(items: Sequence[T], ids: Sequence[str], limit: int) -> Page[T]:
    """Cut what `fetch` brought. `ids` are those of the items, in their order."""
    shown = list(items[:limit])
    return Page(
        data=shown,
        has_more=len(items) > limit,
        first_id=ids[0] if shown else None,
        last_id=ids[len(shown) - 1] if shown else None,
    )

"""Cursor pages as one sequence."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from pydantic import BaseModel

from afdc.sdk.core import Params, get, reply_as
from afdc.sdk.exceptions import ReplyError
from afdc.sdk.sending import Sender, send
from afdc.wire.common import MAX_PAGE, Page

M = TypeVar("M", bound=BaseModel)


async def items(
    sender: Sender,
    model: type[M],
    path: str,
    params: Params | None = None,
    *,
    after: str | None = None,
    limit: int | None = None,
) -> AsyncGenerator[M, None]:
    """Every item, page by page; `limit` caps them all.

    Raises:
        ReplyError: a page that does not say where the next one begins.
    """
    parse: Any = reply_as(Page[model])  # type: ignore[valid-type]  # pydantic makes the class at run time
    left = limit
    while left is None or left > 0:
        size = MAX_PAGE if left is None else min(left, MAX_PAGE)
        page: Page[M] = await send(sender, get(parse, path, {**(params or {}), "after": after, "limit": size}))
        for item in page.data[:left]:
            yield item
        left = None if left is None else left - len(page.data)
        if not page.has_more or not page.data:
            return
        if page.last_id is None or page.last_id == after:
            raise ReplyError(f"a page of {path} does not say where the next one begins")
        after = page.last_id

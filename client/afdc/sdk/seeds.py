"""`client.seeds`: labelled examples, gold to measure on, and texts without labels."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from functools import partial
from pathlib import Path
from uuid import uuid4

from afdc.errors import UsageError
from afdc.sdk.core import delete, get, reply_as, route
from afdc.sdk.exceptions import InvalidRequestError
from afdc.sdk.faces import Face, S, feed, operation
from afdc.sdk.paging import items
from afdc.sdk.seed_upload import (
    ExampleLike,
    Examples,
    SeedRequest,
    SeedSource,
    TaskLike,
    is_stored,
    read_task_like,
    seed_call,
)
from afdc.sdk.sending import Sender, send
from afdc.task import Task
from afdc.wire.common import Deleted
from afdc.wire.seeds import OnInvalid, SeedExample, SeedKind, SeedReport, SeedSet
from afdc.wording import one_line


class Seeds(Face[S]):
    """Seed sets. One that is stored never changes."""

    @operation
    async def create(
        self,
        source: Examples,
        *,
        task: TaskLike = None,
        kind: SeedKind = "seeds",
        holdout: Iterable[ExampleLike] = (),
        on_invalid: OnInvalid = "reject",
        name: str = "",
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> SeedSet:
        """Store examples.

        Args:
            source: a JSONL or CSV file, or examples: dicts with text and label, (text, label), or texts.
            task: instruction and labels, also as a file or a dict; default: inferred from the examples.
            kind: "seeds", "gold" or "unlabeled".
            holdout: gold examples that jobs measure on and never train on.
            on_invalid: "reject": one bad example refuses all; "skip": it falls out and is counted.

        Raises:
            InvalidRequestError: examples that cannot be used; `problem.errors` names their lines.
            InputError: a file that cannot be read.
        """
        request = SeedRequest(
            read_task_like(task), kind, tuple(holdout), on_invalid, name, metadata if metadata is not None else {}
        )
        return await store_seeds(self._sender, source, request, operation_key(idempotency_key))

    @operation
    async def validate(
        self,
        source: Examples,
        *,
        task: TaskLike = None,
        kind: SeedKind = "seeds",
        holdout: Iterable[ExampleLike] = (),
        on_invalid: OnInvalid = "reject",
    ) -> SeedReport:
        """What `create` would find in the examples; nothing is stored. Arguments as in `create`."""
        request = SeedRequest(read_task_like(task), kind, tuple(holdout), on_invalid)
        make = partial(seed_call, reply_as(SeedReport), route("seeds", "validate"), source, request)
        return await send(self._sender, await self._sender.offload(make))

    @operation
    async def get(self, id: str) -> SeedSet:
        """One seed set."""
        return await read_seeds(self._sender, id)

    @feed
    def list(self, *, after: str | None = None, limit: int | None = None) -> AsyncIterator[SeedSet]:
        """All seed sets, page by page."""
        return items(self._sender, SeedSet, route("seeds"), after=after, limit=limit)

    @feed
    def examples(self, id: str, *, after: str | None = None, limit: int | None = None) -> AsyncIterator[SeedExample]:
        """The stored examples, page by page."""
        path = route("seeds", id, "examples")
        return items(self._sender, SeedExample, path, after=after, limit=limit)

    @operation
    async def delete(self, id: str) -> Deleted:
        """Delete a seed set."""
        return await send(self._sender, delete(route("seeds", id)))


def operation_key(given: str | None = None) -> str:
    """The idempotency key of one operation: all attempts carry it, and without a given one no other operation does.

    Raises:
        UsageError: a key that no header can hold.
    """
    if given is None:
        return str(uuid4())
    if not re.fullmatch(r"[!-~]{1,200}", given):
        raise UsageError(
            f"{one_line(given, 60)!r} is no idempotency key", remedy="Use 1 to 200 visible ASCII characters"
        )
    return given


async def read_seeds(sender: Sender, id: str) -> SeedSet:
    """`GET /seeds/{id}`."""
    return await send(sender, get(reply_as(SeedSet), route("seeds", id)))


async def store_seeds(sender: Sender, source: Examples, request: SeedRequest, key: str) -> SeedSet:
    """`POST /seeds`."""
    make = partial(seed_call, reply_as(SeedSet), route("seeds"), source, request, key)
    try:
        return await send(sender, await sender.offload(make))
    except InvalidRequestError as exc:
        if isinstance(source, str | Path):  # of several files of one job
            exc.add_place(str(source))
        raise


async def resolve_seeds(
    sender: Sender, source: SeedSource, kind: SeedKind, task: Task | None, key: str
) -> tuple[str, Task | None]:
    """Id of a seed set, made of the source if that is no set yet, and its task where it is known without asking."""
    if isinstance(source, SeedSet):
        return source.id, source.task
    if isinstance(source, str) and is_stored(source):
        return source, task
    stored = await store_seeds(sender, source, SeedRequest(task, kind), key)
    return stored.id, stored.task

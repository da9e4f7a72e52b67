"""`client.keys`: API keys, for administrators."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from afdc.sdk.core import checked, delete, post, reply_as, route
from afdc.sdk.faces import Face, S, feed, operation
from afdc.sdk.paging import items
from afdc.sdk.sending import send
from afdc.wire.common import Deleted
from afdc.wire.keys import Key, KeyCreate, NewKey, Scope


class Keys(Face[S]):
    """API keys."""

    @operation
    async def create(self, name: str = "", *, scopes: Sequence[Scope] = ("read", "jobs"), tenant: str = "") -> NewKey:
        """A new key. Its `key` is shown this once."""
        body = checked(KeyCreate, name=name, scopes=list(scopes), tenant=tenant)
        return await send(self._sender, post(reply_as(NewKey), route("keys"), body))

    @feed
    def list(self, *, after: str | None = None, limit: int | None = None) -> AsyncIterator[Key]:
        """All keys, page by page, without their secrets."""
        return items(self._sender, Key, route("keys"), after=after, limit=limit)

    @operation
    async def revoke(self, id: str) -> Deleted:
        """Make a key useless, from the next request on."""
        return await send(self._sender, delete(route("keys", id)))

"""Tenants and keys in the database."""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, insert, select, update

from afdc_server.accounts.keys import MAX_KEY_CHARS, PREFIX, digest, hint, new_key
from afdc_server.db.schema import api_keys, tenants
from afdc_server.service.ids import KEY, new_id

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: every query of theirs names the tenant. `own`: the tenant's own limits."""

    tenant: str
    key: str
    scopes: frozenset[str]
    own: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def may(self, scope: str) -> bool:
        """Whether the key has the scope; admin has all, and jobs includes read."""
        return scope in self.scopes or "admin" in self.scopes or (scope == "read" and "jobs" in self.scopes)


@dataclass(frozen=True, slots=True)
class StoredKey:
    id: str
    tenant: str
    name: str
    hint: str
    scopes: tuple[str, ...]
    created_at: float
    last_used_at: float | None
    revoked_at: float | None


def ensure_tenant(connection: Connection, tenant: str) -> None:
    """Make the tenant where there is none of this name."""
    if connection.execute(select(tenants.c.id).where(tenants.c.id == tenant)).first() is None:
        connection.execute(insert(tenants).values(id=tenant, limits={}, created_at=time.time()))


def create_key(
    connection: Connection, secret: bytes, tenant: str, scopes: Sequence[str], name: str = ""
) -> tuple[StoredKey, str]:
    """Make a key for the tenant. Returns what is stored, and the key, which is never seen again."""
    ensure_tenant(connection, tenant)
    key = new_key()
    row = {
        "id": new_id(KEY),
        "tenant": tenant,
        "name": name,
        "hint": hint(key),
        "digest": digest(secret, key),
        "scopes": list(scopes),
        "created_at": time.time(),
    }
    connection.execute(insert(api_keys).values(row))
    stored = {name: row[name] for name in ("id", "tenant", "name", "hint", "created_at")}
    return StoredKey(**stored, scopes=tuple(scopes), last_used_at=None, revoked_at=None), key  # type: ignore[arg-type]  # a dict of mixed values


def find_caller(connection: Connection, secret: bytes, key: str) -> Caller | None:
    """Whose key this is; None for unknown and revoked ones."""
    if not key.startswith(PREFIX) or len(key) > MAX_KEY_CHARS:
        return None
    wanted = digest(secret, key)
    both = select(api_keys, tenants.c.limits).join(tenants, tenants.c.id == api_keys.c.tenant)
    row = connection.execute(both.where(api_keys.c.digest == wanted)).first()
    if row is None or row.revoked_at is not None or not hmac.compare_digest(row.digest, wanted):
        return None
    return Caller(row.tenant, row.id, frozenset(row.scopes), row.limits)


def tokens_of(usage: Mapping[str, Any]) -> int:
    """Tokens of a job, as its budget counts them."""
    return int(usage.get("prompt_tokens", 0)) + int(usage.get("completion_tokens", 0))


def keep_spent(connection: Connection, tenant: str, usage: Mapping[str, Any]) -> None:
    """Count what no job's row tells: what a direct request has spent, or a job that is about to be forgotten."""
    spent = tenants.c.spent_tokens + tokens_of(usage)
    connection.execute(update(tenants).where(tenants.c.id == tenant).values(spent_tokens=spent))


def has_key(connection: Connection, *, usable: bool) -> bool:
    """Whether there is any key, or with `usable` one that was not revoked."""
    query = select(api_keys.c.id)
    if usable:
        query = query.where(api_keys.c.revoked_at.is_(None))
    return connection.execute(query.limit(1)).first() is not None


def revoke_key(connection: Connection, key: str) -> bool:
    """Make a key useless from now on. False: there is none of this id."""
    found = connection.execute(select(api_keys.c.revoked_at).where(api_keys.c.id == key)).first()
    if found is not None and found.revoked_at is None:
        connection.execute(update(api_keys).where(api_keys.c.id == key).values(revoked_at=time.time()))
    return found is not None

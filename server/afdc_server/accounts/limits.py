"""What a tenant may take: the server's limits, with its own in their place, and the tokens that it has spent."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sqlalchemy import Connection, select, update

from afdc.wire.tenants import TenantLimits
from afdc_server.accounts.store import ensure_tenant, keep_spent, tokens_of
from afdc_server.db.database import Database
from afdc_server.db.schema import service_jobs, tenants
from afdc_server.service.errors import TokenBudgetError, TooManyError
from afdc_server.service.settings import Limits

LOOK_EVERY_S = 1.0
NEVER = (-math.inf, 0, None)
OWN = tuple(TenantLimits.model_fields)


def with_own(limits: Limits, own: Mapping[str, Any]) -> Limits:
    """`limits` with a tenant's own in their place."""
    kept = {name: own[name] for name in OWN if own.get(name) is not None}
    return limits.model_copy(update=kept) if kept else limits


def all_own_limits(connection: Connection, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """What was set for each of the tenants alone, as far as this version knows it. Unknown ones are left out."""
    found = connection.execute(select(tenants.c.id, tenants.c.limits).where(tenants.c.id.in_(sorted(names))))
    return {row.id: {name: row.limits[name] for name in OWN if row.limits.get(name) is not None} for row in found}


def own_limits(connection: Connection, tenant: str) -> dict[str, Any]:
    """As `all_own_limits`, of one; empty for one that is not there."""
    return all_own_limits(connection, {tenant}).get(tenant, {})


def limits_of(connection: Connection, tenant: str, limits: Limits) -> Limits:
    """What holds for the tenant on a server with these limits."""
    return with_own(limits, own_limits(connection, tenant))


def set_limits(connection: Connection, tenant: str, wanted: TenantLimits) -> None:
    """These are the tenant's own limits from now on, and no others. A tenant that is new is made."""
    ensure_tenant(connection, tenant)
    own = wanted.model_dump(exclude_none=True)
    connection.execute(update(tenants).where(tenants.c.id == tenant).values(limits=own))


def spent_tokens(connection: Connection, tenant: str) -> int:
    """What the tenant has spent: its jobs, those that it has deleted, and direct requests."""
    usages = connection.execute(select(service_jobs.c.usage).where(service_jobs.c.tenant == tenant)).scalars()
    other = connection.execute(select(tenants.c.spent_tokens).where(tenants.c.id == tenant)).scalar() or 0
    return int(other) + sum(map(tokens_of, usages))


class Budgets:
    """Tokens of tenants, as one process sees them. May be used from any thread.

    Direct requests are many and short, so they are counted in memory and `save` writes them; a kill loses what came
    since the last time.
    """

    def __init__(self, db: Database, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._unsaved: Counter[str] = Counter()
        self._seen: dict[str, tuple[float, int, int | None]] = {}  # tenant -> when, spent, allowed

    def spend(self, tenant: str, tokens: int) -> None:
        """Count a direct request."""
        if tokens:
            with self._lock:
                self._unsaved[tenant] += tokens
                self._add(tenant, tokens)

    def forget(self, tenant: str) -> None:
        """Look at the database again: its limits are others now."""
        with self._lock:
            self._seen.pop(tenant, None)

    def save(self) -> None:
        """Write what was counted; all of it is written when this returns, also what another thread was writing.

        Raises:
            StorageError: nothing is lost, and the next time writes it.
        """
        with self._saving:
            with self._lock:
                counted = Counter(self._unsaved)
            if not counted:
                return
            with self._db.write() as connection:
                for tenant, tokens in sorted(counted.items()):  # in one order: servers must not wait for each other
                    keep_spent(connection, tenant, {"prompt_tokens": tokens})
            with self._lock:
                self._unsaved -= counted

    def check_request(self, tenant: str) -> None:
        """Refuse a direct request of a tenant that has spent its tokens. Raises TooManyError."""
        if (told := self._overspent(tenant)) is not None:
            raise TooManyError(told, reason="tenant_tokens", remedy="Ask the operator", retry_after_s=LOOK_EVERY_S)

    def check_job(self, tenant: str, tokens: int) -> None:
        """Stop a running job of a tenant that has spent its tokens.

        Args:
            tokens: spent since the job last asked. The database hears of them from the job, a little later.

        Raises:
            TokenBudgetError: nothing is left.
        """
        with self._lock:
            self._add(tenant, tokens)
        if (told := self._overspent(tenant)) is not None:
            remedy = "What is finished is kept: ask the operator for more, then retry the job"
            raise TokenBudgetError(told, remedy=remedy)

    def _add(self, tenant: str, tokens: int) -> None:
        at, spent, allowed = self._seen.get(tenant, NEVER)
        self._seen[tenant] = (at, spent + tokens, allowed)

    def _overspent(self, tenant: str) -> str | None:
        """What the tenant is told, or None where it may go on. The database is asked once a second."""
        with self._lock:
            at, spent, allowed = self._seen.get(tenant, NEVER)
        if self._clock() - at >= LOOK_EVERY_S:
            spent, allowed = self._look(tenant)
        return told_spent(spent, allowed) if allowed is not None and spent >= allowed else None

    def _look(self, tenant: str) -> tuple[int, int | None]:
        with self._db.read() as connection:
            allowed = limits_of(connection, tenant, self._limits).tenant_tokens
            spent = spent_tokens(connection, tenant) if allowed is not None else 0
        with self._lock:
            spent += self._unsaved[tenant]
            self._seen[tenant] = (self._clock(), spent, allowed)
        return spent, allowed


def told_spent(spent: int, allowed: int) -> str:
    """Why nothing more is generated or scored."""
    return f"{spent:,} tokens are spent, and {allowed:,} are allowed"

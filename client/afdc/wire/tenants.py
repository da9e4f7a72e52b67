"""Tenants and what they may take; for administrators."""

from __future__ import annotations

from pydantic import Field

from afdc.task import Model
from afdc.wire.common import Reply, Timestamp

MAX_LIMIT = 2**53
"""What every reader of JSON takes for the same number."""


def _own(what: str) -> int | None:
    found: int | None = Field(default=None, ge=1, le=MAX_LIMIT, description=what)
    return found


class TenantLimits(Model):
    """`PUT /tenants/{id}/limits`: a tenant's own limits. null: that of the server (`limits.*`)."""

    seed_rows: int | None = _own("examples of a seed set")
    unlabeled_rows: int | None = _own("texts of a set without labels")
    draws: int | None = _own("texts that one job may generate")
    tenant_jobs: int | None = _own("unfinished jobs")
    tenant_running: int | None = _own("jobs that run at once")
    tenant_tokens: int | None = _own("tokens that may be spent in all")
    requests_per_minute: int | None = _own("requests of each key")


class Tenant(Reply):
    """`limits`: its own; `effective`: those that hold, with the server's in the place of what it has not."""

    id: str
    limits: TenantLimits
    effective: TenantLimits
    spent_tokens: int = Field(description="by jobs, previews, predictions and direct requests, deleted ones too")
    created_at: Timestamp

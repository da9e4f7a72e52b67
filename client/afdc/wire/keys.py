"""API keys and tenants; for administrators."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from afdc.task import Model
from afdc.wire.common import Name, Reply, Timestamp

Scope = Literal["read", "jobs", "admin"]
"""read: look at everything of the tenant and predict; jobs: also create and change; admin: also engine and keys."""
TENANT = r"^([a-z0-9][a-z0-9_-]{0,62})?$"


class KeyCreate(Model):
    """`POST /keys`."""

    name: Name = ""
    scopes: list[Scope] = Field(default=["read", "jobs"], min_length=1, max_length=3)
    tenant: str = Field(default="", pattern=TENANT, description="default: the tenant of the key that asks")


class Key(Reply):
    id: str
    name: str = ""
    tenant: str
    scopes: list[Scope]
    hint: str = Field(description="the first characters of the key")
    created_at: Timestamp
    last_used_at: Timestamp | None = None
    revoked_at: Timestamp | None = None


class NewKey(Key):
    """The only time that the whole key is shown."""

    key: str = Field(repr=False)

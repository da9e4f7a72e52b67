"""`/keys`: for the operator."""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter

from afdc.errors import InputError
from afdc.wire.common import Deleted, Page
from afdc.wire.keys import Key, KeyCreate, NewKey
from afdc_server.accounts.store import StoredKey, create_key, list_keys, revoke_key
from afdc_server.api.deps import AdminCaller, Held
from afdc_server.api.openapi import problems
from afdc_server.service.errors import missing

router = APIRouter(tags=["keys"])
TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@router.post("/keys", status_code=201, summary="Make a key", responses=problems(400, 401, 403, 413, 422, 429, 503))
def make_key(wanted: KeyCreate, services: Held, caller: AdminCaller) -> NewKey:
    """The reply is the only place where the key is ever shown. A tenant that is new is made with it."""
    tenant = wanted.tenant or caller.tenant
    if not TENANT.fullmatch(tenant):
        raise InputError(
            "a tenant's name has lower-case letters, digits, - and _, and begins with one of the first two"
        )
    with services.db.write() as connection:
        stored, key = create_key(connection, services.secret, tenant, wanted.scopes, wanted.name)
    return NewKey(**_fields(stored), key=key)


@router.get("/keys", summary="List keys", responses=problems(401, 403, 429))
def get_keys(services: Held, _caller: AdminCaller) -> Page[Key]:
    """Of every tenant, newest first."""
    with services.db.read() as connection:
        found = [Key(**_fields(one)) for one in list_keys(connection, None)]
    return Page(data=found, first_id=found[0].id if found else None, last_id=found[-1].id if found else None)


@router.delete("/keys/{id}", summary="Revoke a key", responses=problems(401, 403, 404, 429, 503))
def remove_key(id: str, services: Held, _caller: AdminCaller) -> Deleted:
    """From now on the key opens nothing."""
    with services.db.write() as connection:
        if not revoke_key(connection, id, None):
            raise missing("key", id)
    return Deleted(id=id)


def _fields(stored: StoredKey) -> dict[str, Any]:
    names = ("id", "tenant", "name", "hint", "scopes", "created_at", "last_used_at", "revoked_at")
    return {name: getattr(stored, name) for name in names}

"""`/keys`: for the operator."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body
from sqlalchemy import Row, select

from afdc.wire.common import Deleted, Page
from afdc.wire.keys import Key as KeyOut
from afdc.wire.keys import KeyCreate, NewKey
from afdc_server.accounts import store
from afdc_server.accounts.store import StoredKey, revoke_key
from afdc_server.api.bodies import ApiRoute
from afdc_server.api.deps import AdminCaller, Held, Paged
from afdc_server.api.openapi import examples, links, problems
from afdc_server.api.paging import fetch, make_page
from afdc_server.db.schema import api_keys
from afdc_server.service.errors import missing
from afdc_server.service.ids import KEY, is_id

router = APIRouter(tags=["keys"], route_class=ApiRoute)


Wanted = Annotated[
    KeyCreate,
    Body(
        openapi_examples=examples(
            own_tenant={"name": "ci"}, another_tenant={"name": "team b", "tenant": "team-b", "scopes": ["read"]}
        )
    ),
]


@router.post(
    "/keys",
    status_code=201,
    summary="Make a key",
    responses={201: {"links": links("id", "delete_key")}, **problems(401, 403, 408, 409, 413, 415, 422, 429, 503)},
)
def create_key(wanted: Wanted, services: Held, caller: AdminCaller) -> NewKey:
    """The reply is the only place where the key is ever shown. A tenant that is new is made with it."""
    tenant = wanted.tenant or caller.tenant
    with services.db.write() as connection:
        stored, key = store.create_key(connection, services.secret, tenant, wanted.scopes, wanted.name)
    return NewKey(**_fields(stored), key=key)


@router.get("/keys", summary="List keys", responses=problems(401, 403, 422, 429, 503))
def list_keys(services: Held, _caller: AdminCaller, page: Paged) -> Page[KeyOut]:
    """Of every tenant, newest first."""
    with services.db.read() as connection:
        rows = fetch(connection, select(api_keys), api_keys, page)
    return make_page([KeyOut(**_fields(row)) for row in rows], [row.id for row in rows], page.limit)


@router.delete("/keys/{id}", summary="Revoke a key", responses=problems(401, 403, 404, 429, 503))
def delete_key(id: str, services: Held, _caller: AdminCaller) -> Deleted:
    """From now on the key opens nothing."""
    with services.db.write() as connection:
        if not is_id(id, KEY) or not revoke_key(connection, id):
            raise missing("key", id)
    return Deleted(id=id)


def _fields(stored: StoredKey | Row[Any]) -> dict[str, Any]:
    names = ("id", "tenant", "name", "hint", "scopes", "created_at", "last_used_at", "revoked_at")
    return {name: getattr(stored, name) for name in names}

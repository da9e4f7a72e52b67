"""`/tenants`: what each may take; for the operator."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Path
from sqlalchemy import Connection, select

from afdc.wire.keys import TENANT
from afdc.wire.tenants import Tenant, TenantLimits
from afdc_server.accounts.limits import OWN, own_limits, set_limits, spent_tokens, with_own
from afdc_server.api.bodies import ApiRoute
from afdc_server.api.deps import AdminCaller, Held
from afdc_server.api.openapi import examples, problems
from afdc_server.db.schema import tenants
from afdc_server.service.errors import missing
from afdc_server.service.settings import Limits

router = APIRouter(tags=["tenants"], route_class=ApiRoute)
Name = Annotated[str, Path(min_length=1, pattern=TENANT, description="name of the tenant", examples=["team-b"])]
Wanted = Annotated[
    TenantLimits,
    Body(
        openapi_examples=examples(
            a_budget={"tenant_tokens": 50_000_000}, a_small_share={"tenant_running": 1, "draws": 20_000}, none={}
        )
    ),
]


@router.get("/tenants/{name}", summary="A tenant", responses=problems(401, 403, 404, 422, 429, 503))
def get_tenant(name: Name, services: Held, _caller: AdminCaller) -> Tenant:
    """Its limits, and the tokens that it has spent."""
    with services.db.read() as connection:
        return _read(connection, name, services.settings.limits)


@router.put(
    "/tenants/{name}/limits",
    summary="Set a tenant's limits",
    responses=problems(401, 403, 404, 408, 413, 415, 422, 429, 503),
)
def put_tenant_limits(name: Name, wanted: Wanted, services: Held, _caller: AdminCaller) -> Tenant:
    """In the place of all that it had of its own; what is left out is the server's limit again.

    They hold from now on, for jobs under way too. A tenant that is new is made with them.
    """
    with services.db.write() as connection:
        set_limits(connection, name, wanted)
        made = _read(connection, name, services.settings.limits)
    services.budgets.forget(name)
    return made


def _read(connection: Connection, name: str, limits: Limits) -> Tenant:
    row = connection.execute(select(tenants).where(tenants.c.id == name)).first()
    if row is None:
        raise missing("tenant", name)
    own = own_limits(connection, name)
    effective = with_own(limits, own)
    return Tenant(
        id=row.id,
        limits=TenantLimits(**own),
        effective=TenantLimits(**{key: getattr(effective, key) for key in OWN}),
        spent_tokens=spent_tokens(connection, name),
        created_at=row.created_at,
    )

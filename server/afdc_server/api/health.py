"""Whether the process lives, whether it can work, and what it counts. Without a key: for load balancers."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import text
from starlette.concurrency import run_in_threadpool

from afdc.errors import AfdcError
from afdc.version import afdc_version
from afdc.wire.models import Health
from afdc_server.api.deps import Held
from afdc_server.service.metrics import collect
from afdc_server.service.services import Services

router = APIRouter(tags=["health"])
log = structlog.get_logger("afdc.health")
CANARY_S = 30.0
VERSION = afdc_version()


@router.get("/healthz", summary="Does the process answer?")
async def healthz() -> Health:
    return Health(status="ok", version=VERSION)


@router.get(
    "/readyz",
    response_model=Health,
    summary="Can it work?",
    responses={503: {"model": Health, "description": "Not now; `checks` says what is missing"}},
)
async def readyz(services: Held) -> Response:
    """Reads a row from the database and one token through the engine. A server that ends waits for neither."""
    asking = asyncio.gather(_database(services), _engine(services))
    ending = asyncio.ensure_future(services.hub.closed())
    try:
        either: tuple[asyncio.Future[Any], ...] = (asking, ending)
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        found = await asking if asking.done() else []
    finally:
        asking.cancel()
        ending.cancel()
    checks = dict(zip(("database", "engine"), found, strict=False))
    checks["queue"] = "closing" if services.hub.closing else "ok"
    is_ready = all(found in {"ok", "lent"} for found in checks.values())
    health = Health(status="ready" if is_ready else "unready", version=VERSION, checks=checks)
    return Response(health.model_dump_json(), 200 if is_ready else 503, None, "application/json")


async def _database(services: Services) -> str:
    def ask() -> None:
        with services.db.read() as connection:
            connection.execute(text("SELECT 1"))

    try:
        await run_in_threadpool(ask)
    except AfdcError as exc:
        return _told("database", exc)
    return "ok"


async def _engine(services: Services) -> str:
    try:
        found = await asyncio.wait_for(services.engine.host.run(services.engine.host.engine.health()), CANARY_S)
    except TimeoutError:
        return f"no token within {CANARY_S:g} s"
    except AfdcError as exc:
        return _told("engine", exc)
    return "ok" if found == "ready" else found


def _told(what: str, exc: AfdcError) -> str:
    """What strangers may know; the error's own words can name hosts, users and paths."""
    log.warning("not ready", part=what, error=str(exc))
    return "does not answer"


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(services: Held) -> Any:
    return Response(generate_latest(collect(services)), media_type=CONTENT_TYPE_LATEST)

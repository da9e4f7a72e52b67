"""`/jobs`: create, look at, steer."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Response
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from afdc.errors import ConflictError
from afdc.wire.common import Deleted, Page
from afdc.wire.jobs import (
    TERMINAL,
    Estimate,
    Job,
    JobCreate,
    JobRetry,
    JobStatus,
    Preview,
)
from afdc_server.accounts.store import Caller
from afdc_server.api.bodies import ApiRoute
from afdc_server.api.deps import HeavyThreads, Held, JobId, JobsCaller, Paged, ReadCaller
from afdc_server.api.engine import check_tokens
from afdc_server.api.idempotency import Key, Once, answer_once, keep_reply
from afdc_server.api.openapi import SAMPLE, examples, headers, links, problems
from afdc_server.api.paging import fetch, make_page
from afdc_server.api.room import Room
from afdc_server.db.schema import service_jobs
from afdc_server.jobs import store
from afdc_server.jobs.intake import check_job, check_room, enqueue, plan_job
from afdc_server.jobs.preview import preview_job as make_preview
from afdc_server.jobs.remove import delete_job as forget_job
from afdc_server.jobs.states import Action
from afdc_server.jobs.wire import etag, to_estimate, to_wire
from afdc_server.service.errors import BusyError
from afdc_server.service.ids import DATASET, SEED
from afdc_server.service.services import Services

router = APIRouter(tags=["jobs"], route_class=ApiRoute)
MAX_WAIT_S = 60
POLL_S = 2.0  # what another process writes wakes nobody here
PREVIEWS_AT_ONCE = 4
Wanted = Annotated[
    JobCreate,
    Body(
        openapi_examples=examples(
            defaults={"seeds": SEED + SAMPLE},
            with_settings={
                "seeds": SEED + SAMPLE,
                "preset": "default",
                "settings": {"augment": {"variants": 8}, "loop": {"rounds": 1}},
                "name": "intents",
                "metadata": {"team": "support"},
            },
        )
    ),
]
Again = Annotated[
    JobRetry | None,
    Body(openapi_examples=examples(go_on={}, with_reviews={"reviews": [DATASET + SAMPLE]})),
]
CREATED = {
    "description": "Accepted",
    "headers": headers("Location", "Idempotency-Replayed"),
    "links": links("id", "get_job", "get_events", "get_rounds", "get_metrics", "get_checkpoints", "cancel_job")
    | links("id", "pause_job", "resume_job", "retry_job", "delete_job"),
}


@router.post(
    "/jobs",
    status_code=202,
    response_model=Job,
    summary="Start a job",
    responses={202: CREATED, **problems(401, 403, 404, 408, 409, 413, 415, 422, 429, 503)},
)
async def create_job(
    wanted: Wanted, services: Held, heavy: HeavyThreads, caller: JobsCaller, key: Key = None
) -> Response:
    """Checked whole, then queued. With an Idempotency-Key a repeat gets the same job."""
    once = Once.of(caller.tenant, key, "POST /jobs", wanted.model_dump(mode="json"))
    return await heavy.run(_create, services, caller, wanted, once, None)


def _create(services: Services, caller: Caller, wanted: JobCreate, once: Once, parent: str | None) -> Response:
    def work() -> Response:
        config, _ = check_job(services, caller.tenant, wanted)
        with services.db.write() as connection:
            row = enqueue(connection, services, caller.tenant, wanted, config, parent)
            return keep_reply(connection, once, 202, to_wire(row).model_dump_json(), f"/v1/jobs/{row.id}")

    reply = answer_once(services.db, once, work)
    services.runner.wake()
    return reply


PLANNING = problems(401, 403, 404, 408, 413, 415, 422, 429, 503)


@router.post("/jobs/estimate", summary="What a job would cost", responses=PLANNING)
async def estimate_job(wanted: Wanted, services: Held, heavy: HeavyThreads, caller: ReadCaller) -> Estimate:
    """Tokens, seconds and texts. Nothing is stored or generated."""
    return to_estimate(await heavy.run(plan_job, services, caller.tenant, wanted))


_previews = Room("previews", retry_after_s=5)


@router.post("/jobs/preview", summary="A few rows of a job", responses=PLANNING)
async def preview_job(
    wanted: Wanted,
    services: Held,
    heavy: HeavyThreads,
    caller: JobsCaller,
    rows: Annotated[int, Query(ge=1, le=20, description="texts to generate")] = 10,
) -> Preview:
    """Up to 20 texts as the job would write them, judged by the base model, each with the reason why it is in or out.

    Nothing is stored.
    """
    await check_tokens(services, caller)
    config, inputs = await heavy.run(check_job, services, caller.tenant, wanted)
    with _previews.take(1, PREVIEWS_AT_ONCE):
        return await make_preview(services, caller.tenant, config, inputs, rows)


@router.get("/jobs", summary="List jobs, newest first", responses=problems(401, 403, 422, 429, 503))
def list_jobs(
    services: Held,
    caller: ReadCaller,
    page: Paged,
    status: Annotated[JobStatus | None, Query(description="only those in this state")] = None,
) -> Page[Job]:
    query = select(service_jobs).where(service_jobs.c.tenant == caller.tenant)
    if status is not None:
        query = query.where(service_jobs.c.status == status)
    with services.db.read() as connection:
        rows = fetch(connection, query, service_jobs, page)
    return make_page([to_wire(row) for row in rows], [row.id for row in rows], page.limit)


@router.get(
    "/jobs/{id:id}",
    response_model=Job,
    summary="A job",
    responses={
        200: {"headers": headers("ETag")},
        304: {"description": "The job is what If-None-Match names", "headers": headers("ETag")},
        **problems(401, 403, 404, 422, 429, 503),
    },
)
async def get_job(
    id: JobId,
    services: Held,
    caller: ReadCaller,
    wait: Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="seconds to wait for a change")] = 0,
    if_none_match: Annotated[str | None, Header(description="ETag of the version that is known")] = None,
) -> Response:
    """With `wait` the reply comes when the job is another than `If-None-Match`, at its end, or when time is up."""
    row = await _await_change(services, caller.tenant, id, wait, if_none_match)
    headers = {"ETag": etag(row)}
    if if_none_match == etag(row):
        return Response(status_code=304, headers=headers)
    return Response(to_wire(row).model_dump_json(), 200, headers, "application/json")


async def _await_change(services: Services, tenant: str, id: str, wait: float, known: str | None) -> store.JobRow:
    row = await run_in_threadpool(_read, services, tenant, id)
    if not wait:
        return row
    if services.hub.watchers >= services.settings.limits.streams:
        raise BusyError("too many clients wait for jobs", reason="waits", remedy="Ask without wait", retry_after_s=10)
    known = known or etag(row)
    loop = asyncio.get_running_loop()
    end = loop.time() + wait
    with services.hub.watch(id) as channel:
        while not services.hub.closing and (left := end - loop.time()) > 0:
            wake = channel.wake
            row = await run_in_threadpool(_read, services, tenant, id)
            if etag(row) != known or row.status in TERMINAL:
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(wake), min(left, POLL_S))
    return row


def _read(services: Services, tenant: str, id: str) -> store.JobRow:
    with services.db.read() as connection:
        return store.get(connection, tenant, id)


def _steer(services: Services, tenant: str, id: str, action: Action, key: str | None) -> Response:
    """Move the job, or tell again what the first request with this key was told: the job may have moved on since."""
    once = Once.of(tenant, key, f"POST /jobs/{id}/{action}", None)

    def work() -> Response:
        with services.db.write() as connection:
            store.get(connection, tenant, id)
            if action == "retry":
                check_room(connection, services, tenant)
            store.act(connection, id, action)
            return keep_reply(connection, once, 200, to_wire(store.get(connection, tenant, id)).model_dump_json())

    reply = answer_once(services.db, once, work)
    services.hub.notify(id)
    services.runner.wake()
    return reply


STEERING: dict[int | str, dict[str, Any]] = {
    200: {"headers": headers("Idempotency-Replayed")},
    **problems(401, 403, 404, 409, 422, 429, 503),
}


@router.post("/jobs/{id:id}/cancel", response_model=Job, summary="Stop a job for good", responses=STEERING)
def cancel_job(id: JobId, services: Held, caller: JobsCaller, key: Key = None) -> Response:
    """Its finished rounds stay, with their adapters; `retry` goes on from there."""
    return _steer(services, caller.tenant, id, "cancel", key)


@router.post("/jobs/{id:id}/pause", response_model=Job, summary="Stop a job for now", responses=STEERING)
def pause_job(id: JobId, services: Held, caller: JobsCaller, key: Key = None) -> Response:
    """It lets go of the engine at its next safe point, and keeps everything finished."""
    return _steer(services, caller.tenant, id, "pause", key)


@router.post("/jobs/{id:id}/resume", response_model=Job, summary="Go on with a paused job", responses=STEERING)
def resume_job(id: JobId, services: Held, caller: JobsCaller, key: Key = None) -> Response:
    return _steer(services, caller.tenant, id, "resume", key)


@router.post(
    "/jobs/{id:id}/retry",
    response_model=Job,
    summary="Try again",
    responses={
        200: {"headers": headers("Idempotency-Replayed")},
        202: {**CREATED, "model": Job, "description": "With reviews: the new job"},
        **problems(401, 403, 404, 408, 409, 413, 415, 422, 429, 503),
    },
)
async def retry_job(
    id: JobId, services: Held, heavy: HeavyThreads, caller: JobsCaller, wanted: Again = None, key: Key = None
) -> Response:
    """A failed, cancelled or expired job goes on from where it stopped, or from the beginning where its files are gone.

    With `reviews` it becomes a new job (202).
    """
    if wanted is None or not wanted.reviews:
        return await run_in_threadpool(_steer, services, caller.tenant, id, "retry", key)
    return await heavy.run(_retry_with, services, caller, id, wanted, key)


def _retry_with(services: Services, caller: Caller, id: str, wanted: JobRetry, key: str | None) -> Response:
    before = JobCreate.model_validate(_read(services, caller.tenant, id).request)
    reviews = list(dict.fromkeys([*before.reviews, *wanted.reviews]))
    once = Once.of(caller.tenant, key, f"POST /jobs/{id}/retry", wanted.model_dump(mode="json"))
    return _create(services, caller, before.model_copy(update={"reviews": reviews}), once, id)


@router.delete("/jobs/{id:id}", summary="Delete a job", responses=problems(401, 403, 404, 409, 429, 503))
def delete_job(id: JobId, services: Held, caller: JobsCaller) -> Deleted:
    """With its data sets and adapters. 409 while it is not at its end: cancel it first."""
    with services.db.write() as connection:
        row = store.get(connection, caller.tenant, id)
        if row.status not in TERMINAL:
            raise ConflictError(f"job {id} is {row.status}", remedy="Cancel it first")
        locations = forget_job(connection, caller.tenant, id)
    for location in locations:
        services.artifacts.delete(location)
    shutil.rmtree(services.settings.work / id, ignore_errors=True)
    return Deleted(id=id)

"""`/seeds`: upload, check, look at, delete."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import StringConstraints
from sqlalchemy import select

from afdc.errors import ConflictError, InputError
from afdc.files import canonical_json
from afdc.wire.common import Deleted, Fault, Page
from afdc.wire.seeds import OnInvalid, SeedExample, SeedKind, SeedReport, SeedSet, SeedSetCreate
from afdc_server.accounts.store import Caller
from afdc_server.api.deps import HeavyThreads, Held, JobsCaller, Paged, ReadCaller
from afdc_server.api.idempotency import Key, Once, answer_once, keep_reply
from afdc_server.api.openapi import body_of, headers, links, problems
from afdc_server.api.paging import fetch, make_page
from afdc_server.api.problems import RequestError
from afdc_server.api.uploads import Upload, Wanted, take, task_of
from afdc_server.db.schema import seed_sets
from afdc_server.seeds import store
from afdc_server.service.services import Services

router = APIRouter(tags=["seeds"])
MAX_TASK = 20_000  # a request's line has 64 KiB at most
MAX_LABEL = 1000
LabelName = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LABEL)]
KindQuery = Annotated[SeedKind, Query(description="streams: what the rows are for")]
OnInvalidQuery = Annotated[OnInvalid, Query(description="streams: what one bad row does")]
InstructionQuery = Annotated[str, Query(max_length=MAX_TASK, description="streams: the task's instruction")]
LabelsQuery = Annotated[list[LabelName] | None, Query(max_length=1024, description="streams: the task's labels")]
TaskQuery = Annotated[str, Query(max_length=MAX_TASK, description="streams: the whole task, as JSON")]
EXAMPLE = {
    "task": {
        "instruction": "Which intent does the message have?",
        "labels": [{"name": "card", "description": "about a card"}, {"name": "cancel"}],
    },
    "examples": [{"text": "Where is my card?", "label": "card"}, {"text": "Cancel it", "label": "cancel"}],
    "holdout": [{"text": "The card has not come", "label": "card"}],
    "name": "intents",
}
STREAM_EXAMPLES = {
    "application/jsonl": '{"text": "Where is my card?", "label": "card"}\n{"text": "Cancel it", "label": "cancel"}\n',
    "text/csv": "text,label\nWhere is my card?,card\nCancel it,cancel\n",
    "text/plain": "a text without a label\nanother one\n",
}


@router.post(
    "/seeds",
    status_code=201,
    response_model=SeedSet,
    summary="Upload seeds, gold or texts",
    responses={
        201: {
            "headers": headers("Location", "Idempotency-Replayed"),
            "links": links("id", "get_seeds", "list_examples", "delete_seeds"),
        },
        **problems(401, 403, 408, 409, 413, 415, 422, 429, 503),
    },
    openapi_extra=body_of(SeedSetCreate, EXAMPLE, STREAM_EXAMPLES),
)
async def create_seeds(
    request: Request,
    services: Held,
    heavy: HeavyThreads,
    caller: JobsCaller,
    key: Key = None,
    kind: KindQuery = "seeds",
    on_invalid: OnInvalidQuery = "reject",
    name: Annotated[str, Query(max_length=200, description="streams")] = "",
    instruction: InstructionQuery = "",
    label: LabelsQuery = None,
    task: TaskQuery = "",
) -> Response:
    """As JSON, or as a stream of JSONL, CSV or (texts alone) plain text. 422 lists every fault with its line."""
    options = Wanted(kind, on_invalid, name, task_of(instruction, label, task), {})
    async with take(request, services, caller, heavy, options, instruction) as upload:
        return await heavy.run(_store, services, caller, upload, key)


def _store(services: Services, caller: Caller, upload: Upload, key: str | None) -> Response:
    intake = upload.intake
    once = Once.of(caller.tenant, key, "POST /seeds", _identity(upload))

    def work() -> Response:
        if not intake.report.valid:
            raise _invalid(intake.report)
        return _insert(services, caller, upload, once)

    return answer_once(services.db, once, work)


def _insert(services: Services, caller: Caller, upload: Upload, once: Once) -> Response:
    """Rows first, then the word that they are there. Where that was refused for certain, the rows go again; where a
    commit was not answered it may have been heard: they stay, and are swept if it was not."""
    intake, wanted = upload.intake, upload.wanted
    id, sha256 = store.store_rows(services.artifacts, intake)
    committing = False
    try:
        with services.db.write() as connection:
            made = store.insert_set(
                connection,
                tenant=caller.tenant,
                id=id,
                sha256=sha256,
                kind=wanted.kind,
                intake=intake,
                name=wanted.name,
                meta=wanted.metadata,
            )
            reply = keep_reply(connection, once, 201, made.model_dump_json(), f"/v1/seeds/{id}")
            committing = True
        return reply
    except Exception as exc:
        if not committing or isinstance(exc, ConflictError):
            services.artifacts.delete(store.location(id))
        raise


def _identity(upload: Upload) -> list[Any]:
    """What makes two uploads the same request; the rows as one hash, so that a large set is not copied for it."""
    wanted = upload.wanted
    task = upload.intake.task.model_dump(mode="json") if upload.intake.task else None
    rows = hashlib.sha256()
    for row in upload.intake.rows:
        rows.update(canonical_json(row.to_dict()))
    return [wanted.kind, wanted.on_invalid, wanted.name, wanted.metadata, task, rows.hexdigest()]


def _invalid(report: SeedReport) -> RequestError:
    faults = [
        Fault(
            pointer="" if error.line is None else f"/examples/{error.line - 1}",
            code=error.code,
            message=error.message if error.line is None else f"line {error.line}: {error.message}",
        )
        for error in report.errors
    ]
    first = faults[0].message if faults else "there are no examples that can be used"
    more = f" (and {report.skipped - 1} more)" if report.skipped > 1 else ""
    return RequestError(first + more, faults, code="invalid_seeds")


@router.post(
    "/seeds/validate",
    response_model=SeedReport,
    summary="Check an upload and store nothing",
    responses=problems(401, 403, 408, 413, 415, 422, 429, 503),
    openapi_extra=body_of(SeedSetCreate, EXAMPLE, STREAM_EXAMPLES),
)
async def validate_seeds(
    request: Request,
    services: Held,
    heavy: HeavyThreads,
    caller: ReadCaller,
    kind: KindQuery = "seeds",
    on_invalid: OnInvalidQuery = "reject",
    instruction: InstructionQuery = "",
    label: LabelsQuery = None,
    task: TaskQuery = "",
) -> SeedReport:
    """200 with the report, also when it says that the examples cannot be used."""
    options = Wanted(kind, on_invalid, "", task_of(instruction, label, task), {})
    async with take(request, services, caller, heavy, options, instruction) as upload:
        return upload.intake.report


@router.get("/seeds", summary="List seed sets, newest first", responses=problems(401, 403, 422, 429, 503))
def list_seeds(services: Held, caller: ReadCaller, page: Paged) -> Page[SeedSet]:
    with services.db.read() as connection:
        query = select(seed_sets).where(seed_sets.c.tenant == caller.tenant)
        rows = fetch(connection, query, seed_sets, page)
    return make_page([store.to_wire(row) for row in rows], [row.id for row in rows], page.limit)


@router.get("/seeds/{id:id}", summary="A seed set", responses=problems(401, 403, 404, 429, 503))
def get_seeds(id: str, services: Held, caller: ReadCaller) -> SeedSet:
    with services.db.read() as connection:
        return store.get_set(connection, caller.tenant, id)


@router.get("/seeds/{id:id}/examples", summary="Its rows", responses=problems(401, 403, 404, 422, 429, 503))
def list_examples(id: str, services: Held, caller: ReadCaller, page: Paged) -> Page[SeedExample]:
    """In the order of the upload; the held-out ones last."""
    with services.db.read() as connection:
        store.get_set(connection, caller.tenant, id)
    rows = list(islice(_behind(store.read_rows(services.artifacts, id), page.after), page.limit + 1))
    return make_page(rows, [row.id for row in rows], page.limit)


def _behind(rows: Iterator[SeedExample], after: str) -> Iterator[SeedExample]:
    if after and not any(row.id == after for row in rows):
        raise InputError(f"no example {after[:40]!r} in this set", remedy="Use the last_id of a page of this set")
    return rows


@router.delete("/seeds/{id:id}", summary="Delete a seed set", responses=problems(401, 403, 404, 409, 429, 503))
def delete_seeds(id: str, services: Held, caller: JobsCaller) -> Deleted:
    """Jobs that have ended keep what they made of it. 409 while a job still reads from it."""
    with services.db.write() as connection:
        if store.is_used(connection, caller.tenant, id):
            raise ConflictError(f"a job that is not at its end uses {id}", remedy="Cancel the job, or wait for it")
        store.delete_set(connection, caller.tenant, id)
    services.artifacts.delete(store.location(id))
    return Deleted(id=id)

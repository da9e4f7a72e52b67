"""`/seeds`: upload, check, look at, delete."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import StringConstraints, ValidationError
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from afdc.errors import ConflictError, InputError, StorageError
from afdc.files import canonical_json
from afdc.records import read_records
from afdc.task import Label, Task
from afdc.wire.common import Deleted, Fault, Page
from afdc.wire.seeds import OnInvalid, SeedExample, SeedKind, SeedReport, SeedSet, SeedSetCreate
from afdc_server.accounts.store import Caller
from afdc_server.api.bodies import JSON, media_type, parse_json
from afdc_server.api.deps import Heavy, HeavyThreads, Held, JobsCaller, Paged, ReadCaller
from afdc_server.api.idempotency import Key, Once, in_flight, keep_reply, stored_reply
from afdc_server.api.openapi import body_of, headers, links, problems
from afdc_server.api.paging import fetch, make_page
from afdc_server.api.problems import RequestError, validation_error
from afdc_server.db.schema import seed_sets
from afdc_server.seeds import store
from afdc_server.seeds.intake import Intake, check_wording, records_of, take_in
from afdc_server.service.errors import UnsupportedError
from afdc_server.service.services import Services
from afdc_server.service.settings import ServerSettings

router = APIRouter(tags=["seeds"])
SUFFIXES = {
    "application/jsonl": ".jsonl",
    "application/x-ndjson": ".jsonl",
    "text/csv": ".csv",
    "text/plain": ".txt",
}
MAX_TASK = 20_000  # a request's line has 64 KiB at most
MAX_LABEL = 1000
LabelName = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LABEL)]
SPOOL = "uploads"
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


@dataclass(frozen=True)
class Wanted:
    """How an upload is to be read: of a JSON body its own fields, of a stream the query."""

    kind: SeedKind
    on_invalid: OnInvalid
    name: str
    task: Task | None
    metadata: dict[str, str]


@dataclass(frozen=True)
class Upload:
    """A checked upload, with what names it for Idempotency-Key."""

    wanted: Wanted
    intake: Intake


def _task_of(instruction: str, labels: list[str] | None, task: str) -> Task | None:
    """The task that a stream's query names; None: the labels are inferred, and an instruction alone joins them."""
    try:
        if task:
            return check_wording(Task.model_validate(parse_json(task.encode())))
        if not labels:
            return None
        names = tuple(Label(name=name) for name in labels)
        return check_wording(Task(labels=names, **({"instruction": instruction} if instruction else {})))
    except ValidationError as exc:
        raise validation_error(exc, "query task: " if task else "query label: ") from exc


async def _take(request: Request, services: Services, heavy: Heavy, options: Wanted, instruction: str) -> Upload:
    kind = media_type(request.headers)
    if kind == JSON:
        return await heavy.run(_from_json, await request.body(), services)
    if kind not in SUFFIXES:
        raise UnsupportedError(f"bodies of type {kind[:80]!a} are not read here", remedy=f"Send {JSON} or {_kinds()}")
    async with _spooled(request, services.settings, SUFFIXES[kind]) as path:
        return await heavy.run(_from_file, path, options, instruction, services)


def _kinds() -> str:
    return ", ".join(SUFFIXES)


def _read_body(body: bytes) -> SeedSetCreate:
    try:
        return SeedSetCreate.model_validate(parse_json(body))
    except ValidationError as exc:
        raise validation_error(exc) from exc


def _from_json(body: bytes, services: Services) -> Upload:
    data = _read_body(body)
    if data.task is not None:
        check_wording(data.task)
    wanted = Wanted(data.kind, data.on_invalid, data.name, data.task, dict(data.metadata))
    intake = take_in(
        records_of(data.examples),
        records_of(data.holdout),
        task=data.task,
        kind=data.kind,
        on_invalid=data.on_invalid,
        max_rows=_max_rows(services, data.kind),
    )
    return Upload(wanted, intake)


def _from_file(path: Path, wanted: Wanted, instruction: str, services: Services) -> Upload:
    intake = take_in(
        read_records(path, plain_text=wanted.kind == "unlabeled"),
        (),
        task=wanted.task,
        kind=wanted.kind,
        on_invalid=wanted.on_invalid,
        max_rows=_max_rows(services, wanted.kind),
    )
    if instruction and intake.task is not None:
        intake.task = check_wording(intake.task.model_copy(update={"instruction": instruction}))
    return Upload(wanted, intake)


def _max_rows(services: Services, kind: SeedKind) -> int:
    limits = services.settings.limits
    return limits.unlabeled_rows if kind == "unlabeled" else limits.seed_rows


@asynccontextmanager
async def _spooled(request: Request, settings: ServerSettings, suffix: str) -> AsyncIterator[Path]:
    """The body in a temporary file: it is read more than once, and never whole in memory.

    Raises:
        StorageError: the disk is full.
    """
    folder = settings.data / SPOOL
    folder.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=suffix) as stream:
        async for piece in request.stream():
            try:
                await run_in_threadpool(stream.write, piece)
                stream.flush()
            except OSError as exc:
                raise StorageError(f"an upload cannot be kept: {exc.strerror}", remedy="Free space") from exc
        yield Path(stream.name)


def clear_spool(settings: ServerSettings) -> None:
    """Remove what uploads left behind when the server was killed; nobody else works on the folder."""
    shutil.rmtree(settings.data / SPOOL, ignore_errors=True)


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
    kind: Annotated[SeedKind, Query(description="streams: what the rows are for")] = "seeds",
    on_invalid: Annotated[OnInvalid, Query(description="streams: what one bad row does")] = "reject",
    name: Annotated[str, Query(max_length=200, description="streams")] = "",
    instruction: Annotated[str, Query(max_length=20_000, description="streams: the task's instruction")] = "",
    label: Annotated[list[LabelName] | None, Query(max_length=1024, description="streams: the task's labels")] = None,
    task: Annotated[str, Query(max_length=MAX_TASK, description="streams: the whole task, as JSON")] = "",
) -> Response:
    """As JSON, or as a stream of JSONL, CSV or (texts alone) plain text. 422 lists every fault with its line."""
    options = Wanted(kind, on_invalid, name, _task_of(instruction, label, task), {})
    upload = await _take(request, services, heavy, options, instruction)
    return await heavy.run(_store, services, caller, upload, key)


def _store(services: Services, caller: Caller, upload: Upload, key: str | None) -> Response:
    intake = upload.intake
    once = Once.of(caller.tenant, key, "POST /seeds", _identity(upload))
    with in_flight.hold(once):
        with services.db.read() as connection:
            if (reply := stored_reply(connection, once)) is not None:
                return reply
        if not intake.report.valid:
            raise _invalid(intake.report)
        return _insert(services, caller, upload, once)


def _insert(services: Services, caller: Caller, upload: Upload, once: Once) -> Response:
    """Rows first, then the word that they are there; where that fails, the rows go again."""
    intake, wanted = upload.intake, upload.wanted
    id, sha256 = store.store_rows(services.artifacts, intake)
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
            return keep_reply(connection, once, 201, made.model_dump_json(), f"/v1/seeds/{id}")
    except Exception:
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
    _caller: ReadCaller,
    kind: Annotated[SeedKind, Query(description="streams")] = "seeds",
    on_invalid: Annotated[OnInvalid, Query(description="streams")] = "reject",
    instruction: Annotated[str, Query(max_length=20_000, description="streams")] = "",
    label: Annotated[list[LabelName] | None, Query(max_length=1024, description="streams")] = None,
    task: Annotated[str, Query(max_length=MAX_TASK, description="streams")] = "",
) -> SeedReport:
    """200 with the report, also when it says that the examples cannot be used."""
    options = Wanted(kind, on_invalid, "", _task_of(instruction, label, task), {})
    upload = await _take(request, services, heavy, options, instruction)
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

"""Uploads of examples: a JSON body, or a stream that is spooled to disk and read line by line."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from afdc.errors import StorageError
from afdc.records import read_records
from afdc.task import Label, Task
from afdc.wire.seeds import OnInvalid, SeedKind, SeedSetCreate
from afdc_server.accounts.limits import with_own
from afdc_server.accounts.store import Caller
from afdc_server.api.bodies import JSON, media_type, parse_json, unread
from afdc_server.api.deps import Heavy
from afdc_server.api.problems import validation_error
from afdc_server.scratch import scratch_folder
from afdc_server.seeds.intake import Intake, check_wording, records_of, take_in, take_in_texts
from afdc_server.service.services import Services
from afdc_server.service.settings import Limits, ServerSettings

SUFFIXES = {
    "application/jsonl": ".jsonl",
    "application/x-ndjson": ".jsonl",
    "text/csv": ".csv",
    "text/plain": ".txt",
}
SPOOL, ROWS_FILE = "uploads", "rows"


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


def task_of(instruction: str, labels: list[str] | None, task: str) -> Task | None:
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


@asynccontextmanager
async def take(
    request: Request, services: Services, caller: Caller, heavy: Heavy, options: Wanted, instruction: str
) -> AsyncIterator[Upload]:
    """The upload, checked. Its rows can be read until the end of the block."""
    kind = media_type(request.headers)
    limits = with_own(services.settings.limits, caller.own)
    if kind == JSON:
        yield await heavy.run(_from_json, await request.body(), limits)
        return
    if kind not in SUFFIXES:
        raise unread(kind, f"{JSON} or {', '.join(SUFFIXES)}")
    async with spooled(request, services.settings, SUFFIXES[kind]) as path:
        yield await heavy.run(_from_file, path, options, instruction, limits)


def _read_body(body: bytes) -> SeedSetCreate:
    try:
        return SeedSetCreate.model_validate(parse_json(body))
    except ValidationError as exc:
        raise validation_error(exc) from exc


def _from_json(body: bytes, limits: Limits) -> Upload:
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
        max_rows=_max_rows(limits, data.kind),
    )
    return Upload(wanted, intake)


def _from_file(path: Path, wanted: Wanted, instruction: str, limits: Limits) -> Upload:
    limit = _max_rows(limits, wanted.kind)
    if wanted.kind == "unlabeled":
        records = read_records(path, plain_text=True)
        rows = path.with_name(ROWS_FILE)
        with _kept():
            return Upload(wanted, take_in_texts(records, rows, on_invalid=wanted.on_invalid, max_rows=limit))
    intake = take_in(
        read_records(path),
        (),
        task=wanted.task,
        kind=wanted.kind,
        on_invalid=wanted.on_invalid,
        max_rows=limit,
    )
    if instruction and intake.task is not None:
        intake.task = check_wording(intake.task.model_copy(update={"instruction": instruction}))
    return Upload(wanted, intake)


def _max_rows(limits: Limits, kind: SeedKind) -> int:
    return limits.unlabeled_rows if kind == "unlabeled" else limits.seed_rows


@asynccontextmanager
async def spooled(request: Request, settings: ServerSettings, suffix: str) -> AsyncIterator[Path]:
    """The body in a file of a temporary folder, for what reads it more than once and never has it whole in memory.

    Raises:
        StorageError: the disk is full.
    """
    with scratch_folder("upload-", settings.data / SPOOL) as folder:
        path = folder / f"body{suffix}"
        with _kept():
            stream = path.open("wb")
        with stream:
            async for piece in request.stream():
                with _kept():
                    await run_in_threadpool(stream.write, piece)
                    stream.flush()
        yield path


@contextmanager
def _kept() -> Iterator[None]:
    """Name what a full disk raises."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise StorageError(f"an upload cannot be kept: {reason}", remedy="Free space") from exc


def clear_spool(settings: ServerSettings) -> None:
    """Remove what uploads left behind when the server was killed; nobody else works on the folder."""
    shutil.rmtree(settings.data / SPOOL, ignore_errors=True)

"""`/datasets`: what a job has made, its rows, its files, other formats of it, and reviews."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import ValidationError
from sqlalchemy import Connection

from afdc.files import sha256_file
from afdc.task import Task
from afdc.wire.common import DEFAULT_PAGE, MAX_PAGE, Fault, Page
from afdc.wire.datasets import MAX_REVIEWS, Dataset, ExportFormat, ReviewFilter, ReviewsCreate, Row, Split
from afdc_server.accounts.store import Caller
from afdc_server.api.arrays import array_elements, first_character
from afdc_server.api.bodies import JSON, require_json
from afdc_server.api.deps import HeavyThreads, Held, JobsCaller, ReadCaller
from afdc_server.api.files import BINARY, RESPONSES, attachment, file_reply, started
from afdc_server.api.idempotency import Key, Once, answer_once, keep_reply
from afdc_server.api.openapi import problems
from afdc_server.api.problems import RequestError, validation_error
from afdc_server.api.uploads import spooled
from afdc_server.datasets.export import export_dataset
from afdc_server.datasets.filters import RowFilter
from afdc_server.datasets.labelstudio import LabelStudioTask, labelling_config, read_annotations
from afdc_server.datasets.pages import rows_page
from afdc_server.datasets.store import StoredDataset, get_dataset
from afdc_server.datasets.verdicts import INVALID_REVIEWS, Verdict, read_reviews
from afdc_server.datasets.versions import Reviewing
from afdc_server.service.errors import TooLargeError
from afdc_server.service.services import Services

router = APIRouter(tags=["datasets"])
XML = "application/xml"
REVIEWS_EXAMPLES = {
    "reviews": {
        "summary": "Reviews",
        "value": {
            "reviews": [
                {"row": "c_0f3c5b7a9d2e4f61", "decision": "accept"},
                {"row": "c_5a1d0c9b8e7f6a32", "decision": "relabel", "label": "billing", "note": "asks for a refund"},
                {"row": "c_77ab12cd34ef5690", "decision": "reject"},
            ],
            "reviewer": "ada",
        },
    },
    "labelstudio": {
        "summary": "A JSON export of Label Studio",
        "value": [
            {
                "data": {"text": "Where is my parcel?", "afdc_row": "c_0f3c5b7a9d2e4f61"},
                "annotations": [
                    {
                        "result": [
                            {
                                "from_name": "label",
                                "to_name": "text",
                                "type": "choices",
                                "value": {"choices": ["delivery"]},
                            }
                        ]
                    }
                ],
            }
        ],
    },
}
REVIEWS_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {
                "schema": {
                    "oneOf": [
                        {"$ref": "#/components/schemas/ReviewsCreate"},
                        {"type": "array", "items": {"$ref": "#/components/schemas/LabelStudioTask"}},
                    ]
                },
                "examples": REVIEWS_EXAMPLES,
            }
        },
    }
}


def row_filter(
    label: Annotated[str | None, Query(max_length=100_000, description="label, or answer of an open task")] = None,
    source: Annotated[str | None, Query(max_length=64, description="seed, generated, unlabeled or human")] = None,
    reason: Annotated[str | None, Query(max_length=200, description="why the row is in or out")] = None,
    min_confidence: Annotated[float | None, Query(ge=0, le=1, description="included")] = None,
    max_confidence: Annotated[float | None, Query(ge=0, le=1, description="included")] = None,
    q: Annotated[str | None, Query(max_length=1000, description="part of the text, in any letter case")] = None,
    review: Annotated[
        ReviewFilter | None,
        Query(description="needed: not judged by a person, the rows that a review tells most about first; done"),
    ] = None,
) -> RowFilter:
    """Which rows; all that are given must hold."""
    return RowFilter(label, source, reason, min_confidence, max_confidence, q or None, review)


@router.get("/datasets/{id}", summary="A data set", responses=problems(401, 403, 404, 429, 503))
def read_dataset(id: str, services: Held, caller: ReadCaller) -> Dataset:
    """One version of a data set, with its counts and files. It never changes."""
    return _find(services, caller, id).wire


@router.get("/datasets/{id}/rows", summary="Its rows", responses=problems(401, 403, 404, 422, 429, 503))
def list_rows(
    id: str,
    services: Held,
    caller: ReadCaller,
    wanted: Annotated[RowFilter, Depends(row_filter)],
    split: Annotated[Split, Query(description="rejected: what was left out")] = "default",
    after: Annotated[
        str, Query(pattern=r"^([0-9]{1,18})?$", description="last_id of the page before: the row's place in the split")
    ] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
) -> Page[Row]:
    """In the order of the files; with review=needed the most valuable first. docs/outputs.md explains the columns."""
    dataset = _find(services, caller, id)
    return rows_page(dataset, services.artifacts, split, wanted, int(after) if after else -1, limit)


@router.get("/datasets/{id}/files/{path:path}", summary="A file of it", response_class=Response, responses=RESPONSES)
def read_dataset_file(id: str, path: str, request: Request, services: Held, caller: ReadCaller) -> Response:
    """One of `files`. Range, If-Range and If-None-Match work; the ETag is the SHA-256."""
    dataset = _find(services, caller, id)
    return file_reply(request, services.artifacts, dataset.location, dataset.file(path))


@router.head(
    "/datasets/{id}/files/{path:path}", summary="Size and hash of a file", response_class=Response, responses=RESPONSES
)
def head_dataset_file(id: str, path: str, request: Request, services: Held, caller: ReadCaller) -> Response:
    """As GET, without the content."""
    return read_dataset_file(id, path, request, services, caller)


@router.get(
    "/datasets/{id}/export",
    summary="The rows in another format",
    response_class=Response,
    responses={200: {"description": "The file", "content": BINARY}, **problems(401, 403, 404, 422, 429, 503)},
)
def export_rows(
    id: str,
    services: Held,
    caller: ReadCaller,
    format: Annotated[ExportFormat, Query(description="hf: the whole folder as a zip; docs/service.md has the others")],
    split: Annotated[Split, Query(description="rejected: what was left out; not for training formats")] = "default",
) -> Response:
    """Made while it is sent. CSV: a text that a spreadsheet would take for a formula gets an apostrophe before it."""
    export = export_dataset(_find(services, caller, id), services.artifacts, format, split)
    headers = {"Content-Disposition": attachment(export.name)}
    return StreamingResponse(started(export.pieces), 200, headers, export.media_type)


@router.get(
    "/datasets/{id}/labelstudio-config",
    summary="Labelling set-up for Label Studio",
    response_class=Response,
    responses={200: {"content": {XML: {"schema": {"type": "string"}}}}, **problems(401, 403, 404, 429, 503)},
)
def read_labelstudio_config(id: str, services: Held, caller: ReadCaller) -> Response:
    """For a project that imports `export?format=labelstudio`; its JSON export is a body of `reviews`."""
    return Response(labelling_config(_find(services, caller, id).task), media_type=XML)


@router.post(
    "/datasets/{id}/reviews",
    status_code=201,
    response_model=Dataset,
    summary="Review rows: a new version",
    responses={
        201: {"headers": {"Location": {"schema": {"type": "string"}, "description": "path of the new version"}}},
        **problems(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503),
    },
    openapi_extra=REVIEWS_BODY,
)
async def review_rows(
    id: str, request: Request, services: Held, heavy: HeavyThreads, caller: JobsCaller, key: Key = None
) -> Response:
    """As `ReviewsCreate`, or as the JSON that Label Studio exports. The version that was reviewed stays as it is.

    422 lists every review that cannot be used, and then nothing is stored. An export may be larger than other JSON
    bodies: docs/service.md has the limits.
    """
    require_json(request.headers)
    async with spooled(request, services.settings, ".json") as path:
        return await heavy.run(_review, services, caller, id, path, key)


def _review(services: Services, caller: Caller, id: str, body: Path, key: str | None) -> Response:
    once = Once.of(caller.tenant, key, f"POST /datasets/{id}/reviews", sha256_file(body))

    def created(connection: Connection, made: Dataset) -> Response:
        return keep_reply(connection, once, 201, made.model_dump_json(), f"/v1/datasets/{made.id}")

    def work() -> Response:
        verdicts = _read_verdicts(body, dataset.task, services.settings.limits.json_bytes)
        reviewing = Reviewing(services.db, services.artifacts, services.settings.work)
        return reviewing.review(caller.tenant, id, verdicts, created)

    dataset = _find(services, caller, id)
    return answer_once(services.db, once, work)


def _read_verdicts(body: Path, task: Task, json_bytes: int) -> list[Verdict]:
    """A list is Label Studio's export, read task by task; an object is the API's own form, which is small.

    `json_bytes`: what is read in one piece, a task or the whole object.
    """
    with body.open("rb") as stream:
        if first_character(stream) == "[":
            return read_annotations(_tasks(stream, json_bytes), task)
        if (size := body.stat().st_size) > json_bytes:
            message = f"{size:,} bytes of reviews that are no export of Label Studio, and {json_bytes:,} are allowed"
            raise TooLargeError(message, remedy="Send fewer at once")
        try:
            return read_reviews(ReviewsCreate.model_validate_json(stream.read()))
        except ValidationError as exc:
            raise validation_error(exc) from exc


def _tasks(stream: BinaryIO, largest: int) -> Iterator[LabelStudioTask]:
    for number, text in enumerate(array_elements(stream, largest)):
        if number == MAX_REVIEWS:
            message = f"the export has more than {MAX_REVIEWS:,} tasks: export those that are annotated, or fewer"
            raise RequestError(message, [Fault(code="too_long", message=message)], code=INVALID_REVIEWS)
        try:
            yield LabelStudioTask.model_validate_json(text)
        except ValidationError as exc:
            raise validation_error(exc, within=(number,)) from exc


def _find(services: Services, caller: Caller, id: str) -> StoredDataset:
    with services.db.read() as connection:
        return get_dataset(connection, caller.tenant, id)

"""`/adapters`: what a job has trained."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from afdc.wire.models import Adapter
from afdc_server.accounts.store import Caller
from afdc_server.api.deps import Held, ReadCaller
from afdc_server.api.files import RESPONSES, file_reply
from afdc_server.api.openapi import problems
from afdc_server.datasets.store import StoredAdapter, get_adapter
from afdc_server.service.services import Services

router = APIRouter(tags=["adapters"])


@router.get("/adapters/{id}", summary="An adapter", responses=problems(401, 403, 404, 429, 503))
def read_adapter(id: str, services: Held, caller: ReadCaller) -> Adapter:
    """A LoRA adapter with its files. `final` marks the one that its job hands out."""
    return _find(services, caller, id).wire


@router.get(
    "/adapters/{id}/files/{path:path}",
    summary="A file of an adapter",
    response_class=Response,
    responses=RESPONSES,
)
def read_adapter_file(id: str, path: str, request: Request, services: Held, caller: ReadCaller) -> Response:
    """One of `files`. Range, If-Range and If-None-Match work; the ETag is the SHA-256."""
    adapter = _find(services, caller, id)
    return file_reply(request, services.artifacts, adapter.location, adapter.file(path))


@router.head(
    "/adapters/{id}/files/{path:path}",
    summary="Size and hash of a file of an adapter",
    response_class=Response,
    responses=RESPONSES,
)
def head_adapter_file(id: str, path: str, request: Request, services: Held, caller: ReadCaller) -> Response:
    """As GET, without the content."""
    return read_adapter_file(id, path, request, services, caller)


def _find(services: Services, caller: Caller, id: str) -> StoredAdapter:
    with services.db.read() as connection:
        return get_adapter(connection, caller.tenant, id)

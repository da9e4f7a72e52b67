"""`/jobs/{id}/rounds`, `/metrics`, `/checkpoints`: what a job has made so far."""

from __future__ import annotations

import csv
import io
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from sqlalchemy import select

from afdc.result import RoundResult
from afdc.wire.jobs import Checkpoint, Checkpoints, JobRounds
from afdc_server.api.deps import Held, JobId, ReadCaller
from afdc_server.api.openapi import problems
from afdc_server.db.schema import adapters
from afdc_server.jobs import store
from afdc_server.jobs.progress import ROUNDS
from afdc_server.ledger.schema import values as job_values
from afdc_server.service.services import Services

router = APIRouter(tags=["jobs"])


@router.get("/jobs/{id:id}/rounds", summary="Its finished rounds", responses=problems(401, 403, 404, 429, 503))
def get_rounds(id: JobId, services: Held, caller: ReadCaller) -> JobRounds:
    return JobRounds(data=_rounds(services, caller.tenant, id))


def _rounds(services: Services, tenant: str, id: str) -> list[RoundResult]:
    with services.db.read() as connection:
        store.get(connection, tenant, id)
        query = select(job_values.c.value).where(job_values.c.job == id, job_values.c.key == ROUNDS)
        found = connection.execute(query).scalar()
    return [RoundResult.model_validate(one) for one in found or []]


METRICS = ("round", "candidates", "selected", "flip_rate", "agreement", "mean_confidence")


@router.get(
    "/jobs/{id:id}/metrics",
    response_model=list[dict[str, Any]],
    summary="Numbers by round, flat",
    responses={
        200: {"content": {"text/csv": {"schema": {"type": "string"}}}},
        **problems(401, 403, 404, 422, 429, 503),
    },
)
def get_metrics(
    id: JobId, services: Held, caller: ReadCaller, format: Annotated[Literal["json", "csv"], Query()] = "json"
) -> Any:
    """One line a round: counts, flips, agreement, accuracy on held-out gold and on the gold set."""
    rows = [_flat(result) for result in _rounds(services, caller.tenant, id)]
    if format == "json":
        return rows
    text = io.StringIO()
    writer = csv.DictWriter(text, list(_flat(RoundResult(round=0, candidates=0, selected=0))), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return Response(text.getvalue(), media_type="text/csv")


def _flat(result: RoundResult) -> dict[str, Any]:
    flat: dict[str, Any] = {name: getattr(result, name) for name in METRICS}
    for name in ("holdout", "encoder", "eval"):
        found = getattr(result, name)
        for metric in ("accuracy", "macro_f1", "ece"):
            flat[f"{name}_{metric}"] = getattr(found, metric) if found is not None else None
    return {**flat, "activated": result.activated, "seconds": round(sum(result.seconds.values()), 3)}


@router.get("/jobs/{id:id}/checkpoints", summary="Adapters of its rounds", responses=problems(401, 403, 404, 429, 503))
def get_checkpoints(id: JobId, services: Held, caller: ReadCaller) -> Checkpoints:
    """Each from the end of its round on, whatever becomes of the job; `final` is set when the job has succeeded."""
    with services.db.read() as connection:
        store.get(connection, caller.tenant, id)
        where = (adapters.c.job == id, adapters.c.tenant == caller.tenant)
        rows = connection.execute(select(adapters).where(*where).order_by(adapters.c.round, adapters.c.id)).all()
    names = ("id", "name", "round", "activated", "final", "created_at")
    return Checkpoints(data=[Checkpoint(**{name: getattr(row, name) for name in names}) for row in rows])

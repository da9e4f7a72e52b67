"""A job's row as the API tells of it."""

from __future__ import annotations

from typing import Any

from afdc.result import EvalSummary
from afdc.wire.jobs import Estimate, Job, JobError, JobProgress, JobUsage
from afdc_pipeline.estimate import Plan
from afdc_server.jobs.store import JobRow
from afdc_server.service.settings import without_address


def to_wire(row: JobRow) -> Job:
    """Every field that a client may see."""
    request, result = row.request, row.result or {}
    scored: Any = result.get("eval")
    return Job(
        id=row.id,
        name=row.name,
        status=row.status,
        stage=row.stage,
        round=row.round,
        progress=JobProgress.model_validate(row.progress),
        usage=JobUsage.model_validate(row.usage),
        error=JobError.model_validate(row.error) if row.error else None,
        seeds=request["seeds"],
        eval=request.get("eval"),
        unlabeled=request.get("unlabeled"),
        reviews=request.get("reviews", []),
        parent=row.parent,
        preset=request.get("preset", "default"),
        config=without_address(row.config),  # rows of earlier versions have it
        config_hash=row.config_hash,
        model=row.model,
        model_revision=row.model_revision,
        engine=row.engine,
        dataset=row.dataset,
        adapter=row.adapter,
        rows=(result.get("dataset") or {}).get("rows"),
        accuracy=EvalSummary.model_validate(scored) if scored and scored.get("n") else None,
        stop_reason=result.get("stop_reason", ""),
        metadata=request.get("metadata", {}),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        updated_at=row.updated_at,
    )


def etag(row: JobRow) -> str:
    """RFC 9110, 8.8.3: changes whenever the job does."""
    return f'"{row.version}"'


def to_estimate(plan: Plan) -> Estimate:
    """The numbers that a client asks for first, and the whole plan."""
    return Estimate(
        seconds=plan.seconds["total"],
        prompt_tokens=plan.prompt_tokens,
        completion_tokens=plan.completion_tokens,
        rows=plan.candidates,
        plan=plan.to_dict(),
    )

"""Jobs: what is asked for, where it stands, and what it will cost."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field

from afdc.config import Preset
from afdc.result import EvalSummary, RoundResult
from afdc.task import Model
from afdc.wire.common import Id, Metadata, Name, Reply, Timestamp

JobStatus = Literal[
    "queued",
    "running",
    "pausing",
    "paused",
    "finalizing",
    "succeeded",
    "failed",
    "cancelling",
    "cancelled",
    "expired",
]
JOB_STATUSES: tuple[str, ...] = get_args(JobStatus)
TERMINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled", "expired"})
"""A job in one of these does not move by itself any more; `retry` puts it back into the queue."""
TERMINAL_EVENTS = frozenset(f"job_{status}" for status in TERMINAL)
"""Kinds of the event that ends a job's stream."""
ErrorCategory = Literal["user", "server"]


class JobCreate(Model):
    """`POST /jobs`, `POST /jobs/preview` and `POST /jobs/estimate`."""

    seeds: Id = Field(description="seed set of kind seeds")
    eval: Id | None = Field(default=None, description="seed set of kind gold; default: the holdout of the seeds")
    unlabeled: Id | None = Field(default=None, description="seed set of kind unlabeled")
    reviews: list[Id] = Field(
        default_factory=list, max_length=16, description="data sets whose reviewed rows join the seeds as gold"
    )
    preset: Preset = "default"
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="sections and keys of docs/configuration.md over the preset, without model and engine: "
        '{"augment": {"variants": 8}, "loop": {"rounds": 1}}',
    )
    model: str = Field(default="", max_length=1000, description="base model; default: the one that is served")
    name: Name = ""
    metadata: Metadata = Field(default_factory=dict)


class JobRetry(Model):
    """`POST /jobs/{id}/retry`."""

    reviews: list[Id] = Field(
        default_factory=list,
        max_length=16,
        description="data sets whose reviews join the seeds: then it is a new job, with this one as its parent",
    )


class JobProgress(Reply):
    """`fraction` is of the plan, 0..1; `counts` are those of the present stage."""

    fraction: float = 0.0
    eta_seconds: float | None = None
    counts: dict[str, float] = Field(default_factory=dict)


class JobUsage(Reply):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    engine_seconds: float = 0.0
    trainer_seconds: float = 0.0


class JobError(Reply):
    """Why a job failed. category user: the request must change; server: the operator must look."""

    code: str
    message: str
    category: ErrorCategory
    retryable: bool


class Job(Reply):
    id: str
    name: str = ""
    status: JobStatus
    stage: str = ""
    round: int | None = None
    progress: JobProgress = JobProgress()
    usage: JobUsage = JobUsage()
    error: JobError | None = None
    seeds: str
    eval: str | None = None
    unlabeled: str | None = None
    reviews: list[str] = Field(default_factory=list)
    parent: str | None = Field(default=None, description="the job that this one is a retry of, with reviews")
    preset: str = "default"
    config: dict[str, Any] = Field(default_factory=dict, description="every setting, resolved")
    config_hash: str = ""
    model: str = ""
    model_revision: str = ""
    engine: str = Field(default="", description="engine and version")
    dataset: str | None = Field(default=None, description="id of the data set, once it is there")
    adapter: str | None = Field(default=None, description="id of the adapter that is handed out")
    rows: int | None = Field(default=None, description="rows of the data set")
    accuracy: EvalSummary | None = Field(default=None, description="on the gold examples, where there are any")
    stop_reason: str = ""
    metadata: dict[str, str] = Field(default_factory=dict)
    created_at: Timestamp
    started_at: Timestamp | None = None
    finished_at: Timestamp | None = None
    updated_at: Timestamp

    @property
    def is_terminal(self) -> bool:
        """Whether it will not move by itself any more."""
        return self.status in TERMINAL


class Event(Reply):
    """Something that happened to a job. Ids of a job are gapless from 1."""

    id: int
    kind: str
    at: Timestamp
    data: dict[str, Any] = Field(default_factory=dict)


class JobRounds(Reply):
    """`GET /jobs/{id}/rounds`."""

    data: list[RoundResult]


class Checkpoint(Reply):
    """An adapter that a round of the job made."""

    id: str
    name: str
    round: int
    activated: bool = True
    final: bool = False
    created_at: Timestamp


class Checkpoints(Reply):
    data: list[Checkpoint]


class Estimate(Reply):
    """What a job would cost. `plan` is that of `afdc run --dry-run --json`."""

    seconds: float
    prompt_tokens: int
    completion_tokens: int
    rows: int = Field(description="texts that would be generated")
    plan: dict[str, Any] = Field(default_factory=dict)


class PreviewRow(Reply):
    """A text that the job would generate, as it would be judged before any training."""

    text: str
    intended: str | None = None
    label: str | None = None
    confidence: float | None = None
    kept: bool
    reason: str


class Preview(Reply):
    data: list[PreviewRow]

"""Data sets, their rows and their reviews."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from afdc.task import Model, Task
from afdc.wire.common import Id, Name, Reply, Timestamp

ExportFormat = Literal["jsonl", "parquet", "csv", "hf", "messages", "prompt_completion", "alpaca", "labelstudio"]
EXPORT_FORMATS: tuple[str, ...] = get_args(ExportFormat)
Split = Literal["default", "rejected"]
ReviewFilter = Literal["needed", "done"]
Decision = Literal["accept", "relabel", "reject"]
MAX_REVIEWS = 10_000


class StoredFile(Reply):
    """A file that can be downloaded under `/files/{path}`."""

    path: str
    bytes: int
    sha256: str


class Dataset(Reply):
    id: str
    job: str
    version: int = Field(description="1 is the job's own; each review makes the next one")
    parent: str | None = Field(default=None, description="the version that it was made from")
    latest: str = Field(default="", description="the newest version of the same job's data set")
    task: Task
    rows: int
    rejected: int
    per_label: dict[str, int] = Field(default_factory=dict)
    reviewed: int = 0
    files: list[StoredFile] = Field(default_factory=list)
    created_at: Timestamp


class Row(Reply):
    """A row with its story; docs/outputs.md names the columns. `review_value`: what a review of it would tell, 0..1."""

    id: str
    text: str
    label: str | None = None
    source: str = ""
    intended: str | None = None
    distribution: list[float] = Field(default_factory=list)
    confidence: float | None = None
    margin: float | None = None
    entropy: float | None = None
    disagreement: float | None = Field(default=None, description="of the labellers: Jensen-Shannon divergence, nats")
    label_history: list[str] = Field(default_factory=list)
    seed_ids: list[str] = Field(default_factory=list)
    parent: str | None = None
    augment_round: int | None = None
    generator: str | None = None
    prompt_hash: str | None = None
    sampling: str | None = Field(default=None, description="JSON of the sampling parameters")
    scorer: str | None = None
    accepted_round: int | None = None
    reason: str | None = None
    detail: str | None = None
    cluster: str | None = Field(default=None, description="id of the text that its near duplicates are counted with")
    weight: float | None = None
    review_state: str | None = None
    review_value: float | None = None


class Review(Model):
    """A person's word on one row."""

    row: Id = Field(description="id of the row")
    decision: Decision
    label: str | None = Field(default=None, description="relabel: the right one")
    note: str = Field(default="", max_length=2000)

    @model_validator(mode="after")
    def _check_label(self) -> Review:
        if (self.decision == "relabel") != (self.label is not None):
            raise ValueError('decision "relabel" needs a label, and the others take none')
        return self


class ReviewsCreate(Model):
    """`POST /datasets/{id}/reviews`."""

    reviews: list[Review] = Field(min_length=1, max_length=MAX_REVIEWS)
    reviewer: Name = ""

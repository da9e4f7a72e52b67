"""Seed sets: labelled examples, gold to measure on, or texts without labels."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import FailFast, Field

from afdc.task import Model, Task
from afdc.wire.common import Metadata, Name, Reply, Timestamp

SeedKind = Literal["seeds", "gold", "unlabeled"]
OnInvalid = Literal["reject", "skip"]
MAX_LISTED_ERRORS = 100
Examples = Annotated[list[dict[str, Any]], FailFast()]
"""Of a list of millions of anything else, one fault is told."""


class SeedSetCreate(Model):
    """`POST /seeds` as JSON. Every example is checked as a line of a file would be."""

    task: Task | None = Field(
        default=None, description="instruction and labels; without one it is inferred from the examples"
    )
    examples: Examples = Field(
        min_length=1, description='{"text": ..., "label": ..., "id"?: ...}; unlabeled: texts alone'
    )
    holdout: Examples = Field(default_factory=list, description="gold examples that jobs measure on and never train on")
    kind: SeedKind = Field(default="seeds", description="what the examples are for")
    on_invalid: OnInvalid = Field(default="reject", description="what one bad example does: refuse all, or fall out")
    name: Name = ""
    metadata: Metadata = Field(default_factory=dict)


class LineError(Reply):
    """A fault of one example. `line` is 1-based: of the file, or the position in the JSON list."""

    line: int | None = None
    code: str
    message: str


class SeedReport(Reply):
    """What was found in the examples."""

    rows: int
    holdout_rows: int = 0
    per_label: dict[str, int] = Field(default_factory=dict)
    duplicates: int = 0
    contradictions: int = Field(default=0, description="texts with two labels; on_invalid=skip leaves all of them out")
    skipped: int = 0
    errors: list[LineError] = Field(default_factory=list, description="the first 100")
    valid: bool = True


class SeedSet(Reply):
    id: str
    name: str = ""
    kind: SeedKind
    task: Task | None = Field(default=None, description="null for texts without labels")
    report: SeedReport
    sha256: str = Field(description="over task and rows: equal sets have equal hashes")
    metadata: dict[str, str] = Field(default_factory=dict)
    created_at: Timestamp


class SeedExample(Reply):
    """A stored row. `id` is stable: the same text and label have the same id in every set."""

    id: str
    text: str
    label: str | None = None
    holdout: bool = False

"""What goes into the trainer process and what comes out of it.

A round is a folder: `job.json` and `rows.jsonl` in, `result.json` and an adapter folder out. Nothing else is shared. A
result names the job and the rows that it was made from, so that neither side takes it for that of another job.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from afdc.adapter import verify_adapter
from afdc.config import TrainConfig
from afdc.errors import AdapterError
from afdc.files import canonical_json, sha256_bytes, sha256_file
from afdc.task import Model, Task

JOB_FILE = "job.json"
ROWS_FILE = "rows.jsonl"
RESULT_FILE = "result.json"
PROGRESS_FILE = "progress.jsonl"
PARENT_VARIABLE = "AFDC_PARENT_PID"  # a training process ends itself when the process of this id ends
SIGNALLED = 128  # an exit code above it: the signal that ended one of several training processes, as in a shell


class TrainRow(Model):
    """One training text. `targets` maps label indices to probabilities (sum 1): one entry is a hard label.

    A row of an open task has a `completion`, its answer, and no targets.
    The loss of a row is weight * sum_y targets[y] * -log P(label y and terminator | text), averaged over tokens; with a
    completion it is weight * -log P(completion and terminator | text), averaged in the same way.
    """

    text: str
    targets: dict[int, float] = Field(default={})
    weight: float = Field(default=1.0, ge=0)
    gold: bool = False
    completion: str | None = None

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        if bool(self.targets) == bool(self.completion):
            raise ValueError("a row has either targets or a completion")
        return self

    def to_line(self) -> bytes:
        """The row as a line of `rows.jsonl`."""
        return self.model_dump_json(exclude_none=True).encode() + b"\n"


class TrainJob(Model):
    """`job.json`: all that one training run needs; paths are absolute."""

    name: str = Field(description="adapter name without the hash: {job}-r{round}[-m{member}] or {job}-avg")
    job: str
    round: int = Field(ge=0)
    member: int = Field(default=0, ge=0)
    model: Path
    model_revision: str
    task: Task
    template_hash: str = Field(description="PromptCodec.template_hash of the engine; the trainer refuses another")
    rows: Path
    epochs: int = Field(ge=1)
    gold_repeat: int = Field(default=1, ge=1, description="times each gold row appears in an epoch")
    seed: int
    config: TrainConfig
    continue_from: Path | None = None
    average: tuple[Path, ...] = Field(
        default=(),
        description="adapter folders whose mean update is published: then nothing is trained, and rows only give the "
        "answers of the probes",
    )
    temperature: float = Field(default=1.0, gt=0, description="of the label scores, written to the manifest")
    probes: tuple[str, ...] = Field(
        description="texts whose label log-probs the trainer reports, to check the swap; open: gold rows"
    )
    max_tokens: int = Field(ge=16, description="longest prompt plus label, tokens")
    work: Path = Field(description="checkpoints; may be deleted once the result exists")
    adapters: Path = Field(description="folder in which the finished adapter folder appears, named `name-sha12`")
    result: Path = Field(description="where result.json appears last of all")


class TrainResult(Model):
    """`result.json`."""

    status: Literal["succeeded", "failed"]
    adapter: Path | None = None
    inputs: str = Field(default="", description="`inputs_digest` of the job that it is the result of")
    error: str = ""
    losses: tuple[float, ...] = ()
    steps: int = 0
    rows: int = 0
    tokens: int = Field(
        default=0, description="tokens that went through the model, padding and shared prefixes counted once"
    )
    seconds: float = 0.0
    resumed_at_step: int = 0


def inputs_digest(job: TrainJob) -> str:
    """Hex SHA-256 over the job and over the content of its rows file: the identity of a training run.

    Raises:
        FileNotFoundError: there is no rows file.
    """
    data = job.model_dump(mode="json")
    return sha256_bytes(canonical_json({**data, "rows_sha256": sha256_file(job.rows)}))


def published_result(job: TrainJob) -> TrainResult | None:
    """The result of this very job, trained on the rows that lie there now, with its adapter intact; else None."""
    try:
        result = TrainResult.model_validate_json(job.result.read_bytes())
        if result.status != "succeeded" or result.adapter is None or result.inputs != inputs_digest(job):
            return None
        verify_adapter(result.adapter)
    except (FileNotFoundError, ValidationError, AdapterError):
        return None
    return result


def signal_remedy(number: int) -> str:
    """What to do about a training process that a signal ended."""
    return "Memory has probably run out: lower train.batch_size or close programs" if number == signal.SIGKILL else ""

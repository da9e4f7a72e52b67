"""What the algorithm needs from the world: an engine, a trainer, a ledger and a store for rows.

Each is a Protocol; the server package implements them for real, the tests bring deterministic fakes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from afdc.adapter import AdapterManifest
from afdc.encoding import EncoderJob, EncoderResult
from afdc.prompting import Message
from afdc.task import Task
from afdc.training import TrainJob, TrainResult

FloatArray = NDArray[np.float64]
Health = Literal["ready", "lent"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling of a generation request. `seed` makes a draw repeatable."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 64
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt, n continuations. `prompt` is raw text to continue, or chat messages. Both are data."""

    id: str
    prompt: str | tuple[Message, ...]
    n: int
    sampling: Sampling
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation. `mean_logprob`: nats a token under the sampling distribution's raw logits, when it was read."""

    text: str
    tokens: int
    finished: bool
    mean_logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Generated:
    """Answer to one request, in the order of the draws; `error` says why it was rejected, and then it is empty."""

    id: str
    completions: tuple[Completion, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Scores:
    """Label scores of a batch of texts.

    Attributes:
        logprobs: float64 [n_texts, n_labels], log P(label's token sequence | text) over the full vocabulary, nats.
            A rejected text has a row of NaN.
        errors: index of a rejected text -> reason.
    """

    logprobs: FloatArray
    errors: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineUsage:
    """Running totals since the engine object was made; restarts of its process do not reset them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    busy_seconds: float = 0.0
    startup_seconds: float = 0.0
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine serves, for the plan, the manifest and the report."""

    model: str
    model_path: Path
    model_revision: str
    version: str
    device: str
    dtype: str
    max_model_len: int
    chat: bool
    parameters: int


class Engine(Protocol):
    """A server of one base model and several LoRA adapters at once. Bounded: at most `max_in_flight` requests run."""

    async def start(self) -> EngineInfo: ...

    async def close(self) -> None: ...

    def generate(self, requests: Sequence[GenerateRequest], task: Task | None = None) -> AsyncIterator[Generated]:
        """Answers as they finish, in any order, one a request. A poisoned request yields an error, no exception.

        Args:
            task: each prompt is a text of this task: it is put as the trainer puts it, and its answer ends there too.
        """
        ...

    async def score(self, texts: Sequence[str], task: Task, adapter: str | None = None) -> Scores: ...

    async def load_adapter(self, folder: Path) -> AdapterManifest:
        """Verify, load beside the others, probe, activate. Raises AdapterError and leaves the others untouched."""
        ...

    async def unload_adapter(self, name: str) -> None:
        """Drain the adapter's requests, then free its slot. Unknown names are ignored."""
        ...

    async def health(self) -> Health:
        """Read one token through the engine; "lent" without a read while the trainer has the device.

        Raises EngineDiedError when no answer comes.
        """
        ...

    async def lend_device(self) -> None:
        """Make room for the trainer on a shared GPU; nothing to do elsewhere. Requests wait until `reclaim_device`."""
        ...

    async def reclaim_device(self) -> None: ...

    def template_hash(self, task: Task) -> str: ...

    def usage(self) -> EngineUsage: ...


class Trainer(Protocol):
    """Fits one adapter in a process of its own."""

    async def fit(self, job: TrainJob) -> TrainResult:
        """Run to the end, resuming what an earlier call left. Raises TrainerError."""
        ...


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """The untuned sentence encoder: as the user would name it, its folder, and what changes with its weights."""

    name: str
    path: Path
    revision: str


class Encoder(Protocol):
    """Tunes a sentence encoder and labels texts with it, in a process of its own."""

    @property
    def info(self) -> EncoderInfo: ...

    async def label(self, job: EncoderJob) -> EncoderResult:
        """Run every fit of the job to its end. Raises TrainerError."""
        ...


@dataclass(frozen=True, slots=True)
class StageKey:
    """A stage of a job; `round` counts augment rounds for augment stages and self-training rounds for the others."""

    round: int
    stage: str


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """A committed part of a stage: a content-addressed file of rows and what was counted while it was made."""

    index: int
    ref: str
    rows: int
    counters: Mapping[str, float]


class RowStore(Protocol):
    """Immutable, content-addressed files of rows (flat dicts of str, int, float, bool, None and lists of these)."""

    def put(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Write durably and return the reference; the same rows give the same reference."""
        ...

    def get(self, ref: str) -> list[dict[str, Any]]:
        """Raises StorageError when the file is missing or its hash is wrong."""
        ...


class Ledger(Protocol):
    """The record of what is done. Each commit is one transaction; what was committed is never done again."""

    def finished(self, key: StageKey, inputs: str) -> dict[str, Any] | None:
        """The result of a finished stage, or None. Raises ConflictError when it was made from other inputs."""
        ...

    def chunks(self, key: StageKey) -> list[ChunkRecord]:
        """Committed chunks, by index."""
        ...

    def begun(self, key: StageKey, inputs: str) -> list[ChunkRecord]:
        """Chunks of a stage that is about to go on. Raises ConflictError when they were made from other inputs."""
        ...

    def commit_chunk(self, key: StageKey, inputs: str, chunk: ChunkRecord) -> None: ...

    def commit_stage(
        self, key: StageKey, inputs: str, result: Mapping[str, Any], seconds: float, counters: Mapping[str, float]
    ) -> None:
        """Record the stage's result, its `stage_finished` event and its counters together."""
        ...

    def seconds(self) -> dict[tuple[int, str], float]:
        """Seconds of every finished stage by (round, stage)."""
        ...

    def totals(self) -> dict[str, float]:
        """Sum of every counter over all committed chunks and stages."""
        ...

    def add_event(self, kind: str, payload: Mapping[str, Any]) -> int:
        """Append an event and return its gapless id."""
        ...

    def get_value(self, key: str) -> Any: ...

    def set_value(self, key: str, value: Any) -> None: ...


class Progress(Protocol):
    """Where live progress goes. Calls are cheap and may be ignored."""

    def stage(self, key: StageKey, title: str, total: int | None) -> None: ...

    def advance(self, done: int, **counts: float) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class DuplicateHit:
    """An earlier text that the new one repeats. `kind` is "exact" (same normalised form) or "near"."""

    id: str
    kind: str
    similarity: float


class DuplicateIndex(Protocol):
    """Texts seen so far, on disk: memory stays flat however many there are."""

    def find(self, text: str) -> DuplicateHit | None: ...

    def add(self, id: str, text: str) -> None: ...

    def close(self) -> None: ...

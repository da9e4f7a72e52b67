"""Adapters, predictions, and the engine itself."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from afdc.task import Model, Task
from afdc.wire.common import Id, Name, Reply, Timestamp
from afdc.wire.datasets import StoredFile

MAX_TEXTS = 4096
MAX_PROMPTS = 1024
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Messages = Annotated[list[dict[str, str]], Field(min_length=1, max_length=1024)]


class Adapter(Reply):
    """A LoRA adapter that a job made, in the layout of PEFT."""

    id: str
    name: str
    job: str
    round: int
    final: bool = Field(description="the one that the job hands out")
    base_model: str
    base_revision: str
    rank: int
    task: Task
    files: list[StoredFile] = Field(default_factory=list)
    created_at: Timestamp


class PredictCreate(Model):
    """`POST /predict`."""

    job: Id | None = Field(default=None, description="whose adapter answers: a job, or")
    adapter: Id | None = Field(default=None, description="an adapter by id")
    texts: list[str] = Field(min_length=1, max_length=MAX_TEXTS)


class Prediction(Reply):
    """The calibrated distribution over the labels of one text; `error` says why there is none."""

    text: str
    label: str | None = None
    confidence: float | None = None
    probs: dict[str, float] = Field(default_factory=dict)
    label_logprobs: dict[str, float | None] = Field(default_factory=dict)
    error: str | None = None


class Predictions(Reply):
    adapter: str | None
    data: list[Prediction]


class SamplingIn(Model):
    temperature: float = Field(default=1.0, ge=0, le=10, strict=True)
    top_p: float = Field(default=1.0, gt=0, le=1, strict=True)
    max_tokens: int = Field(default=64, ge=1, le=1 << 17, strict=True)
    seed: int | None = Field(default=None, ge=0, lt=1 << 63, strict=True)
    stop: list[Stop] = Field(default_factory=list, max_length=16)


class PromptIn(Model):
    """One prompt: raw text to continue, or chat messages."""

    prompt: str | Messages
    n: int = Field(default=1, ge=1, le=1024, strict=True)
    adapter: Name | None = Field(default=None, description="name of a loaded adapter; default: the base model")
    id: Name = ""


class GenerateCreate(Model):
    """`POST /generate`; operators."""

    prompts: list[PromptIn] = Field(min_length=1, max_length=MAX_PROMPTS)
    sampling: SamplingIn = SamplingIn()


class CompletionOut(Reply):
    text: str
    tokens: int
    finished: bool
    mean_logprob: float | None = None


class GeneratedOut(Reply):
    id: str
    completions: list[CompletionOut] = Field(default_factory=list)
    error: str = ""


class GenerateReply(Reply):
    """In the order of the prompts."""

    data: list[GeneratedOut]
    model: str


class ScoreCreate(Model):
    """`POST /score`; operators."""

    task: Task
    texts: list[str] = Field(min_length=1, max_length=MAX_TEXTS)
    adapter: Name | None = Field(default=None, description="name of a loaded adapter; default: the base model")


class ScoreReply(Reply):
    """`logprobs[i][j]`: natural log-probability of label j's whole token sequence after text i; null: none at all."""

    labels: list[str]
    logprobs: list[list[float | None]]
    errors: dict[int, str] = Field(default_factory=dict)
    model: str


class EngineAdapterCreate(Model):
    """`POST /engine/adapters`: put an adapter of this server into the engine; operators."""

    adapter: Id = Field(description="id of an adapter")


class EngineAdapter(Reply):
    name: str
    id: str | None = None
    loaded: bool
    users: int
    last_used_at: Timestamp | None = None


class EngineAdapters(Reply):
    data: list[EngineAdapter]
    slots: int


class Health(Reply):
    """`checks` are those of `/readyz`."""

    status: str
    version: str = Field(default="", description="of the server")
    checks: dict[str, Any] = Field(default_factory=dict)

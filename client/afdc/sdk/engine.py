"""What both clients do themselves: ask a job's adapter, and ask the engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from afdc.errors import InputError, UsageError
from afdc.inputs import check_text
from afdc.records import type_name
from afdc.sdk.core import checked, post, reply_as, route
from afdc.sdk.seed_upload import TaskLike, read_task_like
from afdc.sdk.sending import Sender, send
from afdc.task import first_fault
from afdc.wire.models import (
    GenerateCreate,
    GenerateReply,
    PredictCreate,
    Prediction,
    Predictions,
    PromptIn,
    SamplingIn,
    ScoreCreate,
    ScoreReply,
)

T = TypeVar("T")

BATCH = 256
"""Texts or prompts a request: few enough that one is answered in minutes on a CPU and can be repeated."""
PATIENCE_S = 600.0

PromptLike = PromptIn | Mapping[str, Any] | str


async def predict(sender: Sender, texts: str | Iterable[str], job: str | None, adapter: str | None) -> list[Prediction]:
    """`POST /predict`, batch by batch."""
    if (job is None) == (adapter is None):
        raise UsageError("predict needs a job or an adapter, and not both", remedy="Pass job=... or adapter=...")
    found: list[Prediction] = []
    for batch in _batches(_texts(texts)):
        body = checked(PredictCreate, job=job, adapter=adapter, texts=batch)
        call = post(reply_as(Predictions), route("predict"), body, repeatable=True, patience_s=PATIENCE_S)
        found += (await send(sender, call)).data
    return found


async def generate(
    sender: Sender, prompts: Iterable[PromptLike], sampling: SamplingIn | Mapping[str, Any] | None
) -> GenerateReply:
    """`POST /generate`, batch by batch; the replies as one."""
    found = GenerateReply(data=[], model="")
    wanted = [prompts] if isinstance(prompts, str) else prompts
    for batch in _batches([_prompt(place, prompt) for place, prompt in enumerate(wanted)]):
        body = checked(GenerateCreate, prompts=batch, sampling=sampling if sampling is not None else SamplingIn())
        call = post(reply_as(GenerateReply), route("generate"), body, repeatable=True, patience_s=PATIENCE_S)
        reply = await send(sender, call)
        found = GenerateReply(data=[*found.data, *reply.data], model=reply.model)
    return found


async def score(sender: Sender, texts: str | Iterable[str], task: TaskLike, adapter: str | None) -> ScoreReply:
    """`POST /score`, batch by batch; the replies as one."""
    read = read_task_like(task)
    found = ScoreReply(labels=list(read.names) if read else [], logprobs=[], model="")
    for batch in _batches(_texts(texts)):
        body = checked(ScoreCreate, task=read, texts=batch, adapter=adapter)
        call = post(reply_as(ScoreReply), route("score"), body, repeatable=True, patience_s=PATIENCE_S)
        found = _joined(found, await send(sender, call))
    return found


def _joined(first: ScoreReply, second: ScoreReply) -> ScoreReply:
    offset = len(first.logprobs)
    errors = {offset + place: error for place, error in second.errors.items()}
    logprobs = [*first.logprobs, *second.logprobs]
    return ScoreReply(labels=second.labels, logprobs=logprobs, errors=first.errors | errors, model=second.model)


def _texts(texts: str | Iterable[str]) -> list[str]:
    """All of them, checked before the first batch is paid for. Raises InputError, which names the place."""
    given = [texts] if isinstance(texts, str) else list(texts)
    for place, text in enumerate(given):
        if not isinstance(text, str):
            raise InputError(f"texts[{place}] is {type_name(text)}, and no text")
        check_text(text, f"texts[{place}]")
    return given


def _prompt(place: int, prompt: PromptLike) -> PromptIn:
    try:
        if isinstance(prompt, str):
            return PromptIn(prompt=prompt)
        return prompt if isinstance(prompt, PromptIn) else PromptIn.model_validate(prompt)
    except ValidationError as exc:
        where, _, message = first_fault(exc)
        raise InputError(f"prompts[{place}]{'.' if where else ''}{where}: {message}") from exc


def _batches(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), BATCH):
        yield values[start : start + BATCH]

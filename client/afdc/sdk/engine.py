"""What both clients do themselves: ask a job's adapter, and ask the engine. `client.engine`: what the engine holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from afdc.errors import InputError, UsageError
from afdc.inputs import check_text
from afdc.records import type_name
from afdc.sdk.core import checked, delete, get, post, reply_as, route
from afdc.sdk.faces import Face, S, operation
from afdc.sdk.seed_upload import TaskLike, read_task_like
from afdc.sdk.sending import Sender, send
from afdc.task import first_fault
from afdc.wire.common import Deleted
from afdc.wire.models import (
    EngineAdapter,
    EngineAdapterCreate,
    EngineAdapters,
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
UNLOAD_PATIENCE_S = 60.0
"""So long the server itself waits for an adapter's requests to end."""

PromptLike = PromptIn | Mapping[str, Any] | str


class EngineControl(Face[S]):
    """The adapters in the engine's slots, for operators. Jobs and predictions load by themselves what they need."""

    @operation
    async def adapters(self) -> EngineAdapters:
        """Every adapter that the engine knows, loaded or not, and its number of slots."""
        return await send(self._sender, get(reply_as(EngineAdapters), route("engine", "adapters")))

    @operation
    async def load(self, adapter: str) -> EngineAdapter:
        """Load an adapter that a job made, for instance before the first request for it comes.

        Args:
            adapter: its id.

        Returns:
            Its `name` is what `generate`, `score` and `unload` call it.
        """
        body = checked(EngineAdapterCreate, adapter=adapter)
        call = post(reply_as(EngineAdapter), route("engine", "adapters"), body, repeatable=True, patience_s=PATIENCE_S)
        return await send(self._sender, call)

    @operation
    async def unload(self, name: str) -> Deleted:
        """Take an adapter out of its slot once its requests are done. Whoever needs it has it loaded again.

        Args:
            name: as `adapters` lists it.

        Raises:
            NotFoundError: none of this name is loaded.
        """
        return await send(self._sender, delete(route("engine", "adapters", name), patience_s=UNLOAD_PATIENCE_S))


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

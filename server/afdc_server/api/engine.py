"""Predictions from a job's adapter, and for operators the engine itself."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi import Path as PathParameter
from starlette.concurrency import run_in_threadpool

from afdc.errors import InputError
from afdc.inputs import check_text
from afdc.prompting import Message
from afdc.wire.common import Deleted
from afdc.wire.models import (
    CompletionOut,
    EngineAdapter,
    EngineAdapterCreate,
    EngineAdapters,
    GenerateCreate,
    GeneratedOut,
    GenerateReply,
    PredictCreate,
    Prediction,
    Predictions,
    PromptIn,
    SamplingIn,
    ScoreCreate,
    ScoreReply,
)
from afdc_pipeline.seams import Generated, GenerateRequest, Sampling
from afdc_server.accounts.limits import with_own
from afdc_server.accounts.store import Caller
from afdc_server.api.bodies import ApiRoute
from afdc_server.api.deps import AdminCaller, Held, ReadCaller
from afdc_server.api.openapi import SAMPLE, examples, problems
from afdc_server.api.room import Room
from afdc_server.commands import OpenLabeller
from afdc_server.datasets.store import StoredAdapter, get_adapter
from afdc_server.engine.metering import Tally, current_tally
from afdc_server.jobs import store
from afdc_server.service.errors import BusyError, missing
from afdc_server.service.ids import ADAPTER, JOB
from afdc_server.service.services import Services
from afdc_server.service.settings import SERVED

router = APIRouter(tags=["engine"], route_class=ApiRoute)
ENGINE_PROBLEMS = problems(401, 403, 404, 408, 409, 413, 415, 422, 429, 503)
UNLOAD_S = 60.0
PREDICT = examples(
    of_a_job={"job": JOB + SAMPLE, "texts": ["Where is my card?"]},
    of_an_adapter={"adapter": ADAPTER + SAMPLE, "texts": ["Where is my card?", "Cancel it"]},
)
GENERATE: dict[str, Any] = examples(
    text={"prompts": [{"prompt": "Once upon a time", "n": 2}], "sampling": {"max_tokens": 32, "seed": 0}},
    chat={"prompts": [{"prompt": [{"role": "user", "content": "Say hello"}]}]},
)
SCORE = examples(
    base_model={"task": {"labels": [{"name": "card"}, {"name": "cancel"}]}, "texts": ["Where is my card?"]}
)
LOAD = examples(by_id={"adapter": ADAPTER + SAMPLE})


room = Room("texts", retry_after_s=1)


@router.post("/predict", summary="Label texts with a job's adapter", responses=ENGINE_PROBLEMS)
async def predict(
    wanted: Annotated[PredictCreate, Body(openapi_examples=PREDICT)], services: Held, caller: ReadCaller
) -> Predictions:
    """Calibrated distributions over the labels. A text that cannot be scored has an `error` in its place."""
    await check_tokens(services, caller)
    adapter = await run_in_threadpool(_adapter_for, services, caller.tenant, wanted)
    folder = await run_in_threadpool(local_adapter, services, adapter)
    texts = [check_text(text, f"texts[{number}]") for number, text in enumerate(wanted.texts)]
    with room.take(len(texts), services.settings.limits.engine_texts), spending(services, caller) as tally:
        found = await services.engine.host.run(_read(services, folder, adapter.wire.name, texts, tally))
    return Predictions(adapter=adapter.wire.id, data=found)


async def check_tokens(services: Services, caller: Caller) -> None:
    """Refuse what the caller's tenant has no tokens for. Raises TooManyError."""
    if with_own(services.settings.limits, caller.own).tenant_tokens is not None:
        await run_in_threadpool(services.budgets.check_request, caller.tenant)


@contextmanager
def spending(services: Services, caller: Caller) -> Iterator[Tally]:
    """What is counted in the tally is on the caller's tenant, also where the request breaks off."""
    tally = Tally()
    try:
        yield tally
    finally:
        services.budgets.spend(caller.tenant, tally.tokens)


async def _read(services: Services, folder: Path, name: str, texts: list[str], tally: Tally) -> list[Prediction]:
    """On the engine's loop, in a task of its own."""
    current_tally.set(tally)
    pool, host = services.engine.pool, services.engine.host
    manifest = await pool.add(folder, name)
    async with pool.hold({manifest.name}):
        labeller = OpenLabeller(
            host.engine,
            manifest.task,
            manifest.name,
            manifest.temperature,
            manifest.prior,
            host.info.max_model_len,
        )
        return [Prediction.model_validate(_shared_names(one)) for one in await labeller.read(texts)]


def _shared_names(record: dict[str, object]) -> dict[str, object]:
    """Answers of an open task stand where labels do."""
    return {**record, "label": record.get("label", record.get("answer"))}


def _adapter_for(services: Services, tenant: str, wanted: PredictCreate) -> StoredAdapter:
    if (wanted.job is None) == (wanted.adapter is None):
        raise InputError("name either a job or an adapter", remedy='Send {"job": "job_…", "texts": […]}')
    with services.db.read() as connection:
        if wanted.adapter is not None:
            return get_adapter(connection, tenant, wanted.adapter)
        job = store.get(connection, tenant, wanted.job or "")
        if job.adapter is None:
            raise InputError(
                f"job {job.id} is {job.status} and has no adapter",
                remedy="Wait until it has succeeded, or name an adapter of its checkpoints",
            )
        return get_adapter(connection, tenant, job.adapter)


def local_adapter(services: Services, found: StoredAdapter) -> Path:
    """The adapter's folder on this machine, under the adapter's own name, as the engine serves it."""
    target = services.settings.work.with_name(SERVED) / found.wire.id / found.wire.name
    return services.artifacts.local_folder(found.location, found.wire.files, target)


@router.post("/generate", summary="Generate with the engine", responses=ENGINE_PROBLEMS)
async def generate(
    wanted: Annotated[GenerateCreate, Body(openapi_examples=GENERATE)], services: Held, caller: AdminCaller
) -> GenerateReply:
    """Batched with everything else that runs. A refused prompt has an `error`; the others are answered."""
    await check_tokens(services, caller)
    requests = [_request(number, one, wanted.sampling) for number, one in enumerate(wanted.prompts)]
    draws = sum(one.n for one in wanted.prompts)
    with room.take(draws, services.settings.limits.engine_texts), spending(services, caller) as tally:
        answers = services.engine.host.stream(lambda: _generate(services, requests, tally))
        found = {one.id: one async for one in answers}
    named = zip(wanted.prompts, requests, strict=True)
    data = [_generated(found[request.id], one.id or request.id) for one, request in named]
    return GenerateReply(data=data, model=services.engine.host.info.model)


def _request(number: int, wanted: PromptIn, sampling: SamplingIn) -> GenerateRequest:
    messages = () if isinstance(wanted.prompt, str) else tuple(_message(number, one) for one in wanted.prompt)
    prompt = wanted.prompt if isinstance(wanted.prompt, str) else messages
    chosen = Sampling(sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.seed, tuple(sampling.stop))
    return GenerateRequest(str(number), prompt, wanted.n, chosen, wanted.adapter)


def _message(number: int, fields: dict[str, str]) -> Message:
    if set(fields) != {"role", "content"} or fields["role"] not in {"system", "user", "assistant"}:
        raise InputError(f"prompts[{number}]: a message has role (system, user, assistant) and content")
    return Message(role=fields["role"], content=fields["content"])


async def _generate(services: Services, requests: list[GenerateRequest], tally: Tally) -> AsyncIterator[Generated]:
    """On the engine's loop, in a task of its own."""
    current_tally.set(tally)
    async with services.engine.pool.hold({one.adapter for one in requests}):
        async for item in services.engine.host.engine.generate(requests):
            yield item


def _generated(found: Generated, id: str) -> GeneratedOut:
    names = ("text", "tokens", "finished", "mean_logprob")
    made = [CompletionOut(**{name: getattr(one, name) for name in names}) for one in found.completions]
    return GeneratedOut(id=id, completions=made, error=found.error)


@router.post("/score", summary="Label log-probabilities from the engine", responses=ENGINE_PROBLEMS)
async def score(
    wanted: Annotated[ScoreCreate, Body(openapi_examples=SCORE)], services: Held, caller: AdminCaller
) -> ScoreReply:
    """Exact log-probabilities of every label's token sequence, over the whole vocabulary."""
    if wanted.task.is_open:
        raise InputError("the task has no labels to score", remedy="Name its labels, or use POST /generate")
    await check_tokens(services, caller)

    async def work(tally: Tally) -> ScoreReply:
        current_tally.set(tally)
        async with services.engine.pool.hold({wanted.adapter}):
            scores = await services.engine.host.engine.score(wanted.texts, wanted.task, wanted.adapter)
        rows = [[float(p) if math.isfinite(p) else None for p in row] for row in scores.logprobs]
        return ScoreReply(
            labels=list(wanted.task.names),
            logprobs=rows,
            errors=dict(scores.errors),
            model=services.engine.host.info.model,
        )

    with room.take(len(wanted.texts), services.settings.limits.engine_texts), spending(services, caller) as tally:
        return await services.engine.host.run(work(tally))


@router.get("/engine/adapters", summary="Adapters that the engine knows", responses=problems(401, 403, 429, 503))
async def list_engine_adapters(services: Held, _caller: AdminCaller) -> EngineAdapters:
    async def look() -> EngineAdapters:
        entries = services.engine.pool.entries()
        found = [
            EngineAdapter(name=name, loaded=one.loaded, users=one.users, last_used_at=one.used_at or None)  # type: ignore[arg-type]  # pydantic reads seconds
            for name, one in sorted(entries.items())
        ]
        return EngineAdapters(data=found, slots=services.engine.pool.slots)

    return await services.engine.host.run(look())


@router.post("/engine/adapters", status_code=201, summary="Load an adapter", responses=ENGINE_PROBLEMS)
async def load_engine_adapter(
    wanted: Annotated[EngineAdapterCreate, Body(openapi_examples=LOAD)], services: Held, caller: AdminCaller
) -> EngineAdapter:
    """Verified, loaded beside the others and probed before its name can be used."""

    def look_up() -> tuple[str, Path]:
        with services.db.read() as connection:
            found = get_adapter(connection, caller.tenant, wanted.adapter)
        return found.wire.name, local_adapter(services, found)

    name, folder = await run_in_threadpool(look_up)
    await services.engine.host.run(services.engine.pool.add(folder, name))
    return EngineAdapter(name=name, id=wanted.adapter, loaded=True, users=0)


@router.delete("/engine/adapters/{name}", summary="Unload an adapter", responses=problems(401, 403, 404, 409, 429, 503))
async def unload_engine_adapter(
    name: Annotated[str, PathParameter(description="name in the list", examples=["job-r1-0123456789ab"])],
    services: Held,
    _caller: AdminCaller,
) -> Deleted:
    """Once its requests are done. Whoever needs it has it loaded again."""

    async def work() -> bool:
        try:
            return await asyncio.wait_for(services.engine.pool.unload(name), UNLOAD_S)
        except TimeoutError as exc:
            raise BusyError(
                f"adapter {name} is still in use", reason="adapter", remedy="Try again", retry_after_s=5
            ) from exc

    if not await services.engine.host.run(work()):
        raise missing("loaded adapter", name)
    return Deleted(id=name)

"""Predictions from a job's adapter, and for operators the engine itself."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi import Path as PathParameter
from sqlalchemy import Connection, Row, select
from starlette.concurrency import run_in_threadpool

from afdc.adapter import AdapterManifest
from afdc.errors import InputError
from afdc.inputs import check_text
from afdc.prompting import Message
from afdc.wire.common import Deleted
from afdc.wire.datasets import StoredFile
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
from afdc_server.api.bodies import ApiRoute
from afdc_server.api.deps import AdminCaller, Held, ReadCaller
from afdc_server.api.openapi import SAMPLE, examples, problems
from afdc_server.commands import OpenLabeller
from afdc_server.db.schema import adapters
from afdc_server.jobs import store
from afdc_server.service.errors import BusyError, TooLargeError, missing
from afdc_server.service.ids import ADAPTER, JOB, is_id
from afdc_server.service.services import Services

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


class Room:
    """At most so many texts of direct requests at once: jobs have the rest of the engine."""

    def __init__(self) -> None:
        self.taken = 0

    @asynccontextmanager
    async def take(self, texts: int, limit: int) -> AsyncIterator[None]:
        if texts > limit:
            raise TooLargeError(
                f"{texts:,} texts in one request, and {limit:,} are allowed", remedy="Send fewer at once"
            )
        if self.taken + texts > limit:
            raise BusyError(f"{self.taken} texts are under way", remedy="Try again", retry_after_s=1)
        self.taken += texts
        try:
            yield
        finally:
            self.taken -= texts


room = Room()


@router.post("/predict", summary="Label texts with a job's adapter", responses=ENGINE_PROBLEMS)
async def predict(
    wanted: Annotated[PredictCreate, Body(openapi_examples=PREDICT)], services: Held, caller: ReadCaller
) -> Predictions:
    """Calibrated distributions over the labels. A text that cannot be scored has an `error` in its place."""
    row = await run_in_threadpool(_adapter_for, services, caller.tenant, wanted)
    folder = await run_in_threadpool(local_adapter, services, row)
    texts = [check_text(text, f"texts[{number}]") for number, text in enumerate(wanted.texts)]
    manifest = AdapterManifest.model_validate(row.manifest)
    async with room.take(len(texts), services.settings.limits.engine_texts):
        found = await services.engine.host.run(_read(services, folder, manifest, texts))
    return Predictions(adapter=row.id, data=found)


async def _read(services: Services, folder: Path, manifest: AdapterManifest, texts: list[str]) -> list[Prediction]:
    """On the engine's loop."""
    pool, host = services.engine.pool, services.engine.host
    await pool.add(folder, manifest.name)
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


def _adapter_for(services: Services, tenant: str, wanted: PredictCreate) -> Row[tuple[object, ...]]:
    if (wanted.job is None) == (wanted.adapter is None):
        raise InputError("name either a job or an adapter", remedy='Send {"job": "job_…", "texts": […]}')
    with services.db.read() as connection:
        if wanted.adapter is not None:
            return find_adapter(connection, tenant, wanted.adapter)
        job = store.get(connection, tenant, wanted.job or "")
        if job.adapter is None:
            raise InputError(f"job {job.id} is {job.status} and has no adapter", remedy="Wait until it has succeeded")
        return find_adapter(connection, tenant, job.adapter)


def find_adapter(connection: Connection, tenant: str, id: str) -> Row[tuple[object, ...]]:
    """The adapter of this tenant. Raises NotFoundError."""
    query = select(adapters).where(adapters.c.id == id, adapters.c.tenant == tenant)
    row = connection.execute(query).first() if is_id(id, ADAPTER) else None
    if row is None:
        raise missing("adapter", id)
    return row


def local_adapter(services: Services, row: Row[tuple[object, ...]]) -> Path:
    """The adapter's folder on this machine, under the adapter's own name, as the engine serves it."""
    target = services.settings.work.parent / "served" / row.id / row.name
    return services.artifacts.local_folder(row.location, [StoredFile(**one) for one in row.files], target)


@router.post("/generate", summary="Generate with the engine", responses=ENGINE_PROBLEMS)
async def generate(
    wanted: Annotated[GenerateCreate, Body(openapi_examples=GENERATE)], services: Held, _caller: AdminCaller
) -> GenerateReply:
    """Batched with everything else that runs. A refused prompt has an `error`; the others are answered."""
    requests = [_request(number, one, wanted.sampling) for number, one in enumerate(wanted.prompts)]
    async with room.take(sum(one.n for one in wanted.prompts), services.settings.limits.engine_texts):
        found = {one.id: one async for one in services.engine.host.stream(lambda: _generate(services, requests))}
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


async def _generate(services: Services, requests: list[GenerateRequest]) -> AsyncIterator[Generated]:
    async with services.engine.pool.hold({one.adapter for one in requests}):
        async for item in services.engine.host.engine.generate(requests):
            yield item


def _generated(found: Generated, id: str) -> GeneratedOut:
    names = ("text", "tokens", "finished", "mean_logprob")
    made = [CompletionOut(**{name: getattr(one, name) for name in names}) for one in found.completions]
    return GeneratedOut(id=id, completions=made, error=found.error)


@router.post("/score", summary="Label log-probabilities from the engine", responses=ENGINE_PROBLEMS)
async def score(
    wanted: Annotated[ScoreCreate, Body(openapi_examples=SCORE)], services: Held, _caller: AdminCaller
) -> ScoreReply:
    """Exact log-probabilities of every label's token sequence, over the whole vocabulary."""
    if wanted.task.is_open:
        raise InputError("the task has no labels to score", remedy="Name its labels, or use POST /generate")

    async def work() -> ScoreReply:
        async with services.engine.pool.hold({wanted.adapter}):
            scores = await services.engine.host.engine.score(wanted.texts, wanted.task, wanted.adapter)
        rows = [[float(p) if math.isfinite(p) else None for p in row] for row in scores.logprobs]
        return ScoreReply(
            labels=list(wanted.task.names),
            logprobs=rows,
            errors=dict(scores.errors),
            model=services.engine.host.info.model,
        )

    async with room.take(len(wanted.texts), services.settings.limits.engine_texts):
        return await services.engine.host.run(work())


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
            row = find_adapter(connection, caller.tenant, wanted.adapter)
        return str(row.name), local_adapter(services, row)

    name, folder = await run_in_threadpool(look_up)
    await services.engine.host.run(services.engine.pool.add(folder, name))
    return EngineAdapter(name=name, id=wanted.adapter, loaded=True, users=0)


@router.delete("/engine/adapters/{name}", summary="Unload an adapter", responses=problems(401, 403, 404, 409, 429, 503))
async def unload_engine_adapter(
    name: Annotated[str, PathParameter(description="name in the list", examples=["job-r1-0123456789ab"])],
    services: Held,
    _caller: AdminCaller,
) -> Deleted:
    """Once its requests are done. A job that needs it loads it again."""

    async def work() -> bool:
        if name not in services.engine.pool.entries():
            return False
        try:
            await asyncio.wait_for(services.engine.pool.remove(name), UNLOAD_S)
        except TimeoutError as exc:
            raise BusyError(f"adapter {name} is still in use", remedy="Try again", retry_after_s=5) from exc
        return True

    if not await services.engine.host.run(work()):
        raise missing("loaded adapter", name)
    return Deleted(id=name)

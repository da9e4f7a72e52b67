"""An Engine that asks another one only for what it has not been asked before.

Methods share prompts, texts and adapters: variants of the seeds are written once, and a text is scored once an adapter.
An answer is kept with what it cost, so that a method's seconds and tokens are those of a run without a cache.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from afdc.adapter import WEIGHTS_FILE, AdapterManifest
from afdc.task import Task
from afdc_pipeline.seams import Completion, Engine, EngineInfo, EngineUsage, Generated, GenerateRequest, Health, Scores
from benchmarks.quality.cache import KeyValue, digest, locked
from benchmarks.quality.tasks import refuse_open

VERSION = 1  # of the answers: raise it when the engines answer the same question differently


@dataclass(frozen=True)
class Cost:
    """What one answer took: a share of its batch."""

    prompt_tokens: float
    completion_tokens: float
    seconds: float


class CachedEngine:
    """Implements `afdc_pipeline.seams.Engine` on top of another engine and a KeyValue."""

    def __init__(self, inner: Engine, answers: KeyValue, locks: Path) -> None:
        self.inner, self._answers, self._locks = inner, answers, locks
        self._weights: dict[str, str] = {}
        self._usage = EngineUsage()
        self.saved_seconds = 0.0

    async def start(self) -> EngineInfo:
        self.info = await self.inner.start()
        self._identity = [VERSION, self.info.model_revision, self.info.version, self.info.device, self.info.dtype]
        return self.info

    async def close(self) -> None:
        """Nothing: the engine serves the next job of this process, too."""

    async def generate(self, requests: Sequence[GenerateRequest], task: Task | None = None) -> AsyncIterator[Generated]:
        """As the seam says, for tasks with labels: the sweep has no method for open ones.

        Raises:
            UsageError: `task` is given, which only open tasks do.
        """
        refuse_open(task)
        keys = {request.id: self._request_key(request) for request in requests}
        known = self._answers.get(list(keys.values()))
        missing = [request for request in requests if keys[request.id] not in known]
        if missing:
            with locked(self._locks / digest([keys[request.id] for request in missing])):
                known |= self._answers.get([keys[request.id] for request in missing])
                missing = [request for request in missing if keys[request.id] not in known]
                async for generated in self._ask(missing, keys):
                    yield generated
        asked = {request.id for request in missing}
        for request in requests:
            if request.id not in asked:
                yield self._recall(request.id, known[keys[request.id]])

    async def _ask(self, requests: list[GenerateRequest], keys: dict[str, str]) -> AsyncIterator[Generated]:
        before, started = self.inner.usage(), time.perf_counter()
        fresh = [generated async for generated in self.inner.generate(requests)]
        used, seconds = self.inner.usage(), time.perf_counter() - started
        prompt = used.prompt_tokens - before.prompt_tokens
        stored = {}
        for one in fresh:
            count = sum(c.tokens for c in one.completions)
            cost = Cost(prompt / len(fresh), count, seconds / len(fresh))
            self._spend(cost)
            value = {"cost": asdict(cost), "error": one.error, "completions": [asdict(c) for c in one.completions]}
            stored[keys[one.id]] = json.dumps(value).encode()
        self._answers.put(stored)
        for one in fresh:
            yield one

    def _recall(self, request: str, stored: bytes) -> Generated:
        value = json.loads(stored)
        cost = Cost(**value["cost"])
        self._spend(cost)
        self.saved_seconds += cost.seconds
        return Generated(request, tuple(Completion(**one) for one in value["completions"]), value["error"])

    def _request_key(self, request: GenerateRequest) -> str:
        prompt = request.prompt if isinstance(request.prompt, str) else [[m.role, m.content] for m in request.prompt]
        adapter = self._weights.get(request.adapter or "", "")
        return digest(["generate", *self._identity, prompt, request.n, asdict(request.sampling), adapter])

    async def score(self, texts: Sequence[str], task: Task, adapter: str | None = None) -> Scores:
        names = [*self._identity, self.template_hash(task), self._weights.get(adapter or "", "")]
        keys = [digest(["score", *names, text]) for text in texts]
        known = self._answers.get(keys)
        missing = [index for index, key in enumerate(keys) if key not in known]
        out = np.full((len(texts), len(task.labels)), np.nan)
        errors: dict[int, str] = {}
        if missing:
            errors = await self._score_missing(texts, task, adapter, missing, keys, out)
        for index, key in enumerate(keys):
            if key in known:
                row = np.frombuffer(known[key], dtype=np.float64)
                out[index] = row[2:]
                self._spend(Cost(row[0], 0, row[1]))
                self.saved_seconds += float(row[1])
        return Scores(out, errors)

    async def _score_missing(
        self,
        texts: Sequence[str],
        task: Task,
        adapter: str | None,
        missing: list[int],
        keys: list[str],
        out: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    ) -> dict[int, str]:
        before, started = self.inner.usage(), time.perf_counter()
        fresh = await self.inner.score([texts[index] for index in missing], task, adapter)
        prompt = (self.inner.usage().prompt_tokens - before.prompt_tokens) / len(missing)
        seconds = (time.perf_counter() - started) / len(missing)
        good = [place for place in range(len(missing)) if place not in fresh.errors]
        self._answers.put({keys[missing[i]]: np.array([prompt, seconds, *fresh.logprobs[i]]).tobytes() for i in good})
        for place, index in enumerate(missing):
            out[index] = fresh.logprobs[place]
            self._spend(Cost(prompt, 0, seconds))
        return {missing[place]: reason for place, reason in fresh.errors.items()}

    async def load_adapter(self, folder: Path) -> AdapterManifest:
        manifest = await self.inner.load_adapter(folder)
        self._weights[manifest.name] = manifest.files[WEIGHTS_FILE]
        return manifest

    async def unload_adapter(self, name: str) -> None:
        await self.inner.unload_adapter(name)
        self._weights.pop(name, None)

    async def health(self) -> Health:
        return await self.inner.health()

    async def lend_device(self) -> None:
        await self.inner.lend_device()

    async def reclaim_device(self) -> None:
        await self.inner.reclaim_device()

    def template_hash(self, task: Task) -> str:
        return self.inner.template_hash(task)

    def usage(self) -> EngineUsage:
        return self._usage

    def _spend(self, cost: Cost) -> None:
        have = self._usage
        self._usage = replace(
            have,
            prompt_tokens=have.prompt_tokens + round(cost.prompt_tokens),
            completion_tokens=have.completion_tokens + round(cost.completion_tokens),
            busy_seconds=have.busy_seconds + cost.seconds,
        )

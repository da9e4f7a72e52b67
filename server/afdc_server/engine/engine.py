"""The Engine seam on top of a supervised Backend: text in, completions and label scores out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, aclosing, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from afdc.adapter import AdapterManifest
from afdc.errors import AdapterError, EngineDiedError, EngineError, InputError, RequestRejectedError
from afdc.prompting import PromptCodec, Tokenizer, encode_chat, encode_continuation
from afdc.task import Task
from afdc_pipeline.seams import EngineInfo, EngineUsage, FloatArray, Generated, GenerateRequest, Health, Scores
from afdc_server.engine.adapters import AdapterTable, LiveAdapter, check_files, check_probes, check_template
from afdc_server.engine.backend import AdapterSlot, Backend
from afdc_server.engine.limits import WeightedLimit
from afdc_server.engine.metering import charge
from afdc_server.engine.patience import within
from afdc_server.engine.reading import FEW_READS, read_labels
from afdc_server.engine.settings import EngineSettings
from afdc_server.engine.starting import Starter
from afdc_server.engine.supervisor import Supervisor, Work
from afdc_server.engine.tasks import finish_bounded, see_through
from afdc_server.engine.trie import LabelTrie

CANARY_TOKENS = 4

T = TypeVar("T")


class SupervisedEngine:
    """One base model with its adapters, restarted when it dies. Implements `afdc_pipeline.seams.Engine`."""

    def __init__(
        self,
        create: Callable[[], Backend],
        tokenizer: Tokenizer,
        info: EngineInfo,
        settings: EngineSettings,
        log: Path,
    ) -> None:
        self._tokenizer = tokenizer
        self._info = info
        self._settings = settings
        self._adapters = AdapterTable(settings.config.max_loras)
        self._changing = asyncio.Lock()
        self._limit = WeightedLimit(settings.max_in_flight)
        self._usage = EngineUsage()
        self._plan = lru_cache(maxsize=16)(self._make_plan)
        config = settings.config
        starter = Starter(
            create,
            self._reload_adapters,
            timeout_s=config.start_timeout_s,
            max_restarts=config.max_restarts,
            log=log,
        )
        self._supervisor = Supervisor(starter, config.hang_timeout_s)

    @property
    def supervisor(self) -> Supervisor:
        return self._supervisor

    async def start(self) -> EngineInfo:
        await self._supervisor.start()
        return self._info

    async def close(self) -> None:
        await self._supervisor.close()

    def template_hash(self, task: Task) -> str:
        return self._plan(task)[0].template_hash

    def usage(self) -> EngineUsage:
        return replace(
            self._usage,
            busy_seconds=self._supervisor.busy_seconds,
            startup_seconds=self._supervisor.startup_seconds,
            restarts=self._supervisor.restarts,
        )

    async def generate(
        self, requests: Sequence[GenerateRequest], task: Task | None = None
    ) -> AsyncGenerator[Generated, None]:
        """See `Engine.generate`. Raises AdapterError at once when a request names an adapter that is not loaded.

        Its adapters are held until the last request is done, so that an unload waits for the whole batch. When an
        engine that was restarted refuses one of them, the other requests are answered before AdapterError rises.
        """
        codec = self._plan(task)[0] if task else None
        left = len(requests)
        lost: AdapterError | None = None
        with ExitStack() as held:
            slots = {name: held.enter_context(self._adapters.use(name)) for name in {r.adapter for r in requests}}
            jobs = ((max(1, request.n), request) for request in requests)
            async with aclosing(
                finish_bounded(self._limit, jobs, lambda r: self._generate_one(r, slots[r.adapter], codec))
            ) as done:
                async for generated in done:
                    left -= 1
                    if not left:  # before the yield: the caller may unload without asking for the end
                        held.close()
                    if isinstance(generated, AdapterError):
                        lost = generated
                    else:
                        yield generated
        if lost is not None:
            raise lost

    async def _generate_one(
        self, request: GenerateRequest, slot: AdapterSlot | None, codec: PromptCodec | None
    ) -> Generated | AdapterError:
        ends = (codec.terminator,) if codec else ()
        try:
            prompt = self._encode(request, codec)
            answer = await self._run(slot, lambda b: b.draw(prompt, request.n, request.sampling, slot, ends))
        except (RequestRejectedError, InputError) as exc:
            return Generated(request.id, error=str(exc))
        except AdapterError as exc:
            return exc
        self._count(len(prompt), sum(c.tokens for c in answer.completions), answer.cached_tokens)
        return Generated(request.id, answer.completions)

    async def _run(self, slot: AdapterSlot | None, work: Work[T]) -> T:
        """`Supervisor.run` for an adapter's requests. vLLM would load an unknown adapter unasked: each try checks."""

        async def checked(backend: Backend) -> T:
            self._adapters.confirm(slot)
            return await work(backend)

        return await self._supervisor.run(checked)

    def _encode(self, request: GenerateRequest, codec: PromptCodec | None) -> list[int]:
        if codec and isinstance(request.prompt, str):
            ids = codec.prompt_ids(request.prompt)
        elif isinstance(request.prompt, str):
            ids = encode_continuation(self._tokenizer, request.prompt)
        else:
            ids = encode_chat(self._tokenizer, request.prompt)
        room = self._settings.max_model_len - request.sampling.max_tokens
        if not 0 < len(ids) <= room:
            raise InputError(f"the prompt has {len(ids)} tokens; it must have at least one and at most {room}")
        return ids

    async def score(self, texts: Sequence[str], task: Task, adapter: str | None = None) -> Scores:
        """See `Engine.score`. Raises AdapterError when the adapter is not loaded."""
        with self._adapters.use(adapter) as slot:
            return await self._score(texts, task, slot)

    async def _score(self, texts: Sequence[str], task: Task, slot: AdapterSlot | None) -> Scores:
        codec, trie = self._plan(task)
        if trie is None:
            raise InputError("the task is open: it has no labels to score", remedy="Sample its answers instead")
        logprobs = np.full((len(texts), len(task.names)), np.nan)
        errors: dict[int, str] = {}
        floor = self._settings.config.label_floor if len(trie.reads) > FEW_READS else 0.0

        async def score_one(index: int) -> int:
            try:
                codec.check_length(texts[index], self._settings.max_model_len)
                prompt = codec.prompt_ids(texts[index])
                logprobs[index] = await self._run(slot, lambda b: self._read_labels(b, prompt, trie, slot, floor))
            except (RequestRejectedError, InputError) as exc:
                errors[index] = str(exc)
            return index

        jobs = ((len(trie.reads), index) for index in range(len(texts)))
        async with aclosing(finish_bounded(self._limit, jobs, score_one)) as done:
            async for _ in done:
                pass
        return Scores(logprobs, errors)

    async def _read_labels(
        self, backend: Backend, prompt: list[int], trie: LabelTrie, slot: AdapterSlot | None, floor: float = 0.0
    ) -> FloatArray:
        found = await read_labels(backend, prompt, trie, slot, floor)
        self._count(found.prompt_tokens, 0, found.cached_tokens)
        return found.logprobs

    def _make_plan(self, task: Task) -> tuple[PromptCodec, LabelTrie | None]:
        codec = PromptCodec(self._tokenizer, task)
        return codec, None if task.is_open else LabelTrie.build(codec.scored_ids)

    async def load_adapter(self, folder: Path) -> AdapterManifest:
        folder = folder.resolve()
        manifest = await self._check_files(folder)
        check_template(manifest, self.template_hash(manifest.task))  # on this thread: the tokenizer has state
        async with self._changing:
            live = self._adapters.find(manifest.name)
            if live is not None:
                if live.manifest.files != manifest.files:
                    raise AdapterError(f"another adapter is live under the name {manifest.name}")
                return manifest
            with self._adapters.reserve(manifest.name, folder) as slot:
                try:
                    await self._load(slot, manifest)
                except BaseException:  # also a cancellation: the engine must not keep what is not active
                    await see_through(self._forget(slot))
                    raise
                self._adapters.activate(slot, manifest)
        return manifest

    async def _check_files(self, folder: Path) -> AdapterManifest:
        known = self._info.model, self._info.model_revision, self._settings.config.max_lora_rank
        return await asyncio.to_thread(check_files, folder, *known)

    async def _forget(self, slot: AdapterSlot) -> None:
        with suppress(EngineError):  # the first error rises, and a dead engine has forgotten the adapter
            await self._supervisor.undo(lambda b: b.remove_adapter(slot))

    async def _load(self, slot: AdapterSlot, manifest: AdapterManifest) -> None:
        """Load and probe as one piece of work, so that an adapter that kills the engine is found like any culprit."""
        try:
            served = await self._supervisor.run(lambda b: self._load_and_probe(b, slot, manifest))
        except RequestRejectedError as exc:
            raise AdapterError(f"adapter {manifest.name} cannot be loaded: {exc}") from exc
        check_probes(manifest, served, self._settings.probe_tolerance(manifest.probe_dtype))

    async def _load_and_probe(self, backend: Backend, slot: AdapterSlot, manifest: AdapterManifest) -> FloatArray:
        codec, trie = self._plan(manifest.task)
        await backend.add_adapter(slot)
        tries = [trie or LabelTrie.build(probe.scored_ids(codec)) for probe in manifest.probes]
        asked = zip(manifest.probes, tries, strict=True)
        rows = [await self._read_labels(backend, codec.prompt_ids(probe.text), one, slot) for probe, one in asked]
        return np.array(rows).reshape(len(rows), 1 if trie is None else len(manifest.task.names))

    async def unload_adapter(self, name: str) -> None:
        async with self._changing:
            slot = await self._adapters.drain(name)
            if slot is not None:
                await see_through(self._remove(slot))

    async def _remove(self, slot: AdapterSlot) -> None:
        try:
            await self._supervisor.run(lambda b: b.remove_adapter(slot))
        finally:
            self._adapters.free(slot)

    async def _reload_adapters(self, backend: Backend) -> None:
        """Put every adapter into a new engine as on its first load; drop the one that fails, the others go on."""
        for entry in self._adapters.entries():
            try:
                await self._reload(backend, entry)
            except AdapterError as exc:
                self._adapters.drop(entry.slot, str(exc))

    async def _reload(self, backend: Backend, entry: LiveAdapter) -> None:
        """Check, load and probe. An engine may end for a reason of its own: only the second death is the adapter's.

        Raises:
            AdapterError: it cannot be served.
            EngineDiedError: the engine ended or hung meanwhile.
        """
        slot, manifest = entry.slot, entry.manifest
        if await self._check_files(slot.folder) != manifest:
            raise AdapterError(f"{slot.folder} no longer holds the adapter that was loaded from it")
        limit = self._settings.config.hang_timeout_s
        try:
            served = await within(limit, self._load_and_probe(backend, slot, manifest))
            check_probes(manifest, served, self._settings.probe_tolerance(manifest.probe_dtype))
        except (RequestRejectedError, AdapterError) as exc:
            with suppress(RequestRejectedError):  # the first error says more
                await within(limit, backend.remove_adapter(slot))
            raise AdapterError(f"adapter {manifest.name} cannot be loaded: {exc}") from exc
        except (EngineDiedError, TimeoutError) as exc:
            entry.deaths += 1
            if entry.deaths > 1:
                self._adapters.drop(slot, "the engine died twice while it was loaded")
            raise EngineDiedError(f"the engine ended over adapter {manifest.name}: {exc}") from exc
        entry.deaths = 0

    async def health(self) -> Health:
        prompt = encode_continuation(self._tokenizer, "Hello")[:CANARY_TOKENS]
        try:
            return await self._supervisor.check(lambda b: b.read(prompt, prompt[-1:], None))
        except RequestRejectedError as exc:
            raise EngineDiedError(f"the engine refused its one-token check: {exc}") from exc

    async def lend_device(self) -> None:
        if self._settings.lends_device:
            await self._supervisor.lend(lambda b: b.lend_device())

    async def reclaim_device(self) -> None:
        await self._supervisor.reclaim(lambda b: b.reclaim_device())

    def _count(self, prompt: int, completion: int, cached: int) -> None:
        charge(prompt, completion, cached)
        have = self._usage
        self._usage = replace(
            have,
            prompt_tokens=have.prompt_tokens + prompt,
            completion_tokens=have.completion_tokens + completion,
            cached_tokens=have.cached_tokens + cached,
        )

"""vLLM's AsyncLLM as a Backend. The only module that imports vllm; import it within `engine_environment`.

Facts this relies on are tested in tests/engine/test_canaries.py, so that an upgrade of vLLM tells us.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import signal
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from afdc.errors import EngineDiedError, EngineError, RequestRejectedError
from afdc_pipeline.seams import Completion, Sampling
from afdc_server.engine.backend import AdapterSlot, DrawAnswer, ReadAnswer
from afdc_server.engine.environment import LOG_FILE, engine_launch
from afdc_server.engine.patience import POLL_SECONDS
from afdc_server.engine.postmortem import log_size, remedy
from afdc_server.engine.settings import EngineSettings, engine_arguments

CORE_PROCESS = "EngineCore"  # how vLLM names its engine cores, numbered ones too


class VllmBackend:
    """One engine core process and our end of its queues."""

    def __init__(self, model: Path, settings: EngineSettings, logs: Path) -> None:
        self._model = model
        self._settings = settings
        self._logs = logs
        self._llm: Any = None
        self._creating: asyncio.Future[Any] | None = None
        self._children: frozenset[BaseProcess] | None = None  # of this process before the start; None: not yet begun
        self._ids = itertools.count()
        self._steps = 0
        # The engine core is killed when the thread that started it ends, so that thread lives as long as this object.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="afdc-engine")

    async def start(self) -> None:
        log = self._logs / LOG_FILE
        begun = log_size(log)
        self._creating = asyncio.get_running_loop().run_in_executor(self._thread, self._create)
        try:
            self._llm = await asyncio.shield(self._creating)
        except asyncio.CancelledError:
            self._creating.add_done_callback(_shut_down)
            raise
        except (RuntimeError, ValueError, OSError, TimeoutError) as exc:
            self._thread.shutdown(wait=False)
            raise EngineDiedError(f"vLLM did not start: {exc}", remedy=remedy(log, begun)) from exc
        self._count_steps()

    def _create(self) -> Any:
        with warnings.catch_warnings(), engine_launch(self._settings, self._logs):
            warnings.simplefilter("ignore")  # vLLM's dependencies warn about each other; users can do nothing about it
            self._children = frozenset(multiprocessing.active_children())
            arguments = AsyncEngineArgs(**engine_arguments(self._settings, str(self._model)))
            return AsyncLLM.from_engine_args(arguments)

    def _count_steps(self) -> None:
        """Count what comes back from the engine core: one message a step, also while every request is unfinished."""
        core, receive = self._llm.engine_core, self._llm.engine_core.get_output_async

        async def receive_and_count() -> Any:
            outputs = await receive()
            self._steps += 1
            return outputs

        core.get_output_async = receive_and_count

    async def close(self) -> None:
        while self._creating is not None and not self._creating.done():  # given up: end what it may yet begin
            self.kill()
            await asyncio.wait({self._creating}, timeout=POLL_SECONDS)
        if self._llm is not None:
            llm, self._llm = self._llm, None
            await asyncio.get_running_loop().run_in_executor(None, llm.shutdown)
            await asyncio.sleep(0.05)  # vLLM closes its sockets and ends its tasks in callbacks on this loop
            llm.engine_core.resources.ctx.destroy(linger=0)  # vLLM leaves it to the garbage collector, which complains
        self._thread.shutdown(wait=False)

    @property
    def llm(self) -> Any:
        """The AsyncLLM itself, for canary tests and benchmarks."""
        return self._llm

    def steps(self) -> int:
        return self._steps

    def alive(self) -> bool:
        return self._llm is not None and not self._llm.errored and all(p.is_alive() for p in self._processes())

    def pids(self) -> list[int]:
        """Process ids of the engine core."""
        return [process.pid for process in self._processes() if process.pid is not None]

    def _processes(self) -> list[Any]:
        if self._llm is None:
            return self._starting()
        manager = self._llm.engine_core.resources.engine_manager
        return list(manager.processes) if manager is not None else []

    def _starting(self) -> list[Any]:
        """Engine cores of a start that is under way: `engine_launch` lets no other engine begin one meanwhile."""
        if self._children is None or self._creating is None or self._creating.done():
            return []
        begun = (child for child in multiprocessing.active_children() if child not in self._children)
        return [child for child in begun if child.name.startswith(CORE_PROCESS)]

    def kill(self) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def read(self, prompt: Sequence[int], ids: Sequence[int], adapter: AdapterSlot | None) -> ReadAnswer:
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprob_token_ids=list(ids),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )
        output = await self._ask(prompt, params, adapter)
        [step] = output.outputs[0].logprobs
        values = tuple(float(step[token].logprob) for token in ids)
        if any(value != value for value in values):
            raise RequestRejectedError("the model's answer to this text is not a number (NaN logits)")
        return ReadAnswer(values, output.num_cached_tokens or 0)

    async def draw(
        self,
        prompt: Sequence[int],
        n: int,
        sampling: Sampling,
        adapter: AdapterSlot | None,
        ends: Sequence[int] = (),
    ) -> DrawAnswer:
        output = await self._ask(prompt, _sampling_params(n, sampling, ends), adapter)
        ordered = sorted(output.outputs, key=lambda completion: completion.index)
        return DrawAnswer(tuple(map(_completion, ordered)), output.num_cached_tokens or 0)

    async def _ask(self, prompt: Sequence[int], params: SamplingParams, adapter: AdapterSlot | None) -> RequestOutput:
        """Submit token ids and wait for the finished answer."""
        lora = _lora_request(adapter) if adapter is not None else None
        last: RequestOutput | None = None
        try:
            stream = self._llm.generate(tokens_input(list(prompt)), params, f"q{next(self._ids)}", lora_request=lora)
            async for output in stream:
                last = output
        except Exception as exc:  # vLLM's errors have no common base that holds from 0.26 (ValueError) to 0.33
            raise self._translate(exc, "the engine refused this request") from exc
        if last is None:
            raise EngineDiedError("the engine ended the request without an answer")
        return last

    def _translate(self, exc: Exception, what: str) -> EngineError:
        """Our name for what vLLM raised: the engine is gone, or this request cannot be served."""
        if isinstance(exc, EngineDeadError) or not self.alive():
            return EngineDiedError("the engine process ended")
        cause = exc.__cause__ if isinstance(exc, EngineGenerateError) and exc.__cause__ else exc
        return RequestRejectedError(f"{what}: {cause}")

    async def add_adapter(self, adapter: AdapterSlot) -> None:
        try:
            added = await self._llm.add_lora(_lora_request(adapter))
        except Exception as exc:  # the engine core sends back whatever its LoRA loader raised as a plain Exception
            raise self._translate(exc, "vLLM cannot load the adapter") from exc
        if not added:
            raise RequestRejectedError("vLLM did not add the adapter")

    async def remove_adapter(self, adapter: AdapterSlot) -> None:
        try:
            await self._llm.remove_lora(adapter.number)
        except Exception as exc:  # as in `add_adapter`
            raise self._translate(exc, "vLLM cannot unload the adapter") from exc

    async def lend_device(self) -> None:
        """Pause and free the KV cache. Whatever raises, a cancellation too, the engine goes on as before."""
        if not hasattr(self._llm, "release_kv_cache_memory"):  # vLLM 0.26 has only sleep(), which loses adapters
            raise EngineError(
                "this vLLM cannot lend its KV cache", remedy="Use vLLM 0.32, or leave engine.sleep_mode off"
            )
        try:
            await self._llm.pause_generation(mode="wait")
            await self._llm.release_kv_cache_memory()
        except BaseException as exc:  # also a cancellation: a paused engine would never answer again
            with suppress(Exception):  # a dead engine cannot go on; the first error says what happened
                await self.reclaim_device()
            if isinstance(exc, Exception):  # as in `add_adapter`
                raise self._translate(exc, "vLLM cannot lend the device") from exc
            raise

    async def reclaim_device(self) -> None:
        try:
            await self._llm.wake_up()
            await self._llm.resume_generation()
        except Exception as exc:  # as in `add_adapter`
            raise self._translate(exc, "vLLM cannot take the device back") from exc


def _shut_down(creating: asyncio.Future[Any]) -> None:
    """End an engine that came up after its start was cancelled."""
    if not creating.cancelled() and creating.exception() is None:
        creating.result().shutdown(timeout=1.0)


def _lora_request(adapter: AdapterSlot) -> LoRARequest:
    return LoRARequest(lora_name=adapter.name, lora_int_id=adapter.number, lora_path=str(adapter.folder))


def _sampling_params(n: int, sampling: Sampling, ends: Sequence[int]) -> SamplingParams:
    try:
        return SamplingParams(
            n=n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            stop=list(sampling.stop) or None,
            stop_token_ids=list(ends) or None,
            output_kind=RequestOutputKind.FINAL_ONLY,
            logprobs=0,
        )
    except Exception as exc:  # see `_ask`: no common base between versions
        raise RequestRejectedError(f"the sampling settings cannot be used: {exc}") from exc


def _completion(output: Any) -> Completion:
    tokens = len(output.token_ids)
    total = output.cumulative_logprob
    return Completion(
        text=output.text,
        tokens=tokens,
        finished=output.finish_reason == "stop",
        mean_logprob=total / tokens if total is not None and tokens else None,
    )

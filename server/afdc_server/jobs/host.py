"""The one engine of the server, on an event loop in a thread of its own.

Jobs run in threads too, each with its own loop, so that what blocks one of them (selection, a commit) holds up neither
the engine's batch nor the API. `EngineHost` is how all of them reach the engine.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import aclosing, suppress
from typing import Any, TypeVar, cast

from afdc_pipeline.seams import Engine, EngineInfo
from afdc_server.service.errors import NotRunningError

T = TypeVar("T")
_END = object()


class EngineHost:
    """Runs coroutines beside the engine, for callers on other loops."""

    def __init__(self, create: Callable[[], Engine]) -> None:
        self._create = create
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="afdc-engine", daemon=True)
        self._engine: Engine | None = None
        self._info: EngineInfo | None = None
        self._starting: asyncio.Task[Any] | None = None

    @property
    def engine(self) -> Engine:
        """The engine; its methods belong on the host's loop.

        Raises:
            NotRunningError: it was not started.
        """
        if self._engine is None:
            raise NotRunningError
        return self._engine

    @property
    def info(self) -> EngineInfo:
        """What the engine serves. Raises NotRunningError before it has started."""
        if self._info is None:
            raise NotRunningError
        return self._info

    def start(self) -> Future[EngineInfo]:
        """Begin to start the engine; the future has its info, or the error."""
        self._thread.start()
        return self.submit(self._start())

    async def _start(self) -> EngineInfo:
        self._starting = asyncio.current_task()
        engine = self._create()
        try:
            self._info = await engine.start()
        except BaseException:  # also the server's end: no process of a half-started engine may stay behind
            await engine.close()
            raise
        self._engine = engine
        return self._info

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the engine's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """`submit` for a caller on another loop. Cancelling the caller cancels the work."""
        return await asyncio.wrap_future(self.submit(work))

    async def stream(self, make: Callable[[], AsyncIterator[T]]) -> AsyncIterator[T]:
        """The items of an iterator that lives on the engine's loop. Closing this one closes that one."""
        here = asyncio.get_running_loop()
        items: asyncio.Queue[Any] = asyncio.Queue()

        async def feed() -> None:
            try:
                made = cast("AsyncGenerator[T, None]", make())
                async with aclosing(made) as source:  # its own cleaning up comes before the caller hears of the end
                    async for item in source:
                        here.call_soon_threadsafe(items.put_nowait, item)
            finally:
                with suppress(RuntimeError):  # the caller's loop has ended: nobody waits
                    here.call_soon_threadsafe(items.put_nowait, _END)

        feeding = self.submit(feed())
        try:
            while (item := await items.get()) is not _END:
                yield item
            await asyncio.wrap_future(feeding)  # raises what the iterator raised
        finally:
            feeding.cancel()

    def close(self, timeout_s: float = 30.0) -> None:
        """End the engine, also one that is still starting, and the thread. Whoever waits for an answer is cancelled."""
        if not self._thread.is_alive():
            return
        try:
            with suppress(TimeoutError, CancelledError):
                self.submit(self._end()).result(timeout_s)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout_s)
            if not self._thread.is_alive():
                self._loop.close()

    async def _end(self) -> None:
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])
        try:
            if self._engine is not None:
                await self._engine.close()
        finally:
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

"""The one engine of the server, on an event loop in a thread of its own.

Jobs run in threads too, each with its own loop, so that what blocks one of them (selection, a commit) holds up neither
the engine's batch nor the API. `EngineHost` is how all of them reach the engine.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from afdc.errors import EngineDiedError
from afdc_pipeline.seams import Engine, EngineInfo

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

    @property
    def engine(self) -> Engine:
        """The engine; its methods belong on the host's loop.

        Raises:
            EngineDiedError: it was not started.
        """
        if self._engine is None:
            raise EngineDiedError("the engine is not running yet", remedy="Wait for GET /readyz")
        return self._engine

    @property
    def info(self) -> EngineInfo:
        """What the engine serves. Raises EngineDiedError before it has started."""
        if self._info is None:
            raise EngineDiedError("the engine is not running yet", remedy="Wait for GET /readyz")
        return self._info

    def start(self) -> Future[EngineInfo]:
        """Begin to start the engine; the future has its info, or the error."""
        self._thread.start()
        return self.submit(self._start())

    async def _start(self) -> EngineInfo:
        engine = self._create()
        self._info = await engine.start()
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
                async for item in make():
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
        """End the engine and the thread."""
        if not self._thread.is_alive():
            return
        if self._engine is not None:
            with suppress(TimeoutError):
                self.submit(self._engine.close()).result(timeout_s)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._loop.close()

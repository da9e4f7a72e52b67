"""Keeps a Backend alive: notices death and hangs, starts a new one, and finds the request that kills it.

A request in flight when the engine dies is suspected. Suspects are tried again a few at a time, and those that see a
second death one at a time: a request that kills the engine alone is rejected, and all others get their answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from afdc.errors import AfdcError, EngineDiedError, EngineError, RequestRejectedError
from afdc_server.engine.backend import Backend
from afdc_server.engine.limits import SuspicionGate
from afdc_server.engine.tasks import see_through

T = TypeVar("T")
Work = Callable[[Backend], Awaitable[T]]

UNLIMITED = 1 << 30
PROBATION = 8  # requests tried together after one death: nearly full speed where something else killed the engine
POLL_SECONDS = 0.25


class Supervisor:
    """Runs work on the current backend and replaces the backend when it dies.

    Args:
        create: makes a backend that is not started yet.
        on_restart: called with each backend that replaces a dead one, before it gets any work.
        hang_timeout_s: seconds without an engine step, while work waits, after which the engine counts as dead.
        max_restarts: restarts in the life of this object.
        log: where the engine's own messages are, for error messages.
    """

    def __init__(
        self,
        create: Callable[[], Backend],
        on_restart: Work[None],
        hang_timeout_s: float,
        max_restarts: int,
        log: Path,
    ) -> None:
        self._create = create
        self._on_restart = on_restart
        self._hang_timeout_s = hang_timeout_s
        self._max_restarts = max_restarts
        self._log = log
        self._backend: Backend | None = None
        self._fatal: EngineError | None = None
        self._gate = SuspicionGate((UNLIMITED, PROBATION, 1))
        self._restart: asyncio.Task[None] | None = None  # of this object, not of the caller that saw the death
        self._running: set[asyncio.Future[object]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._busy_since = 0.0
        self.busy_seconds = 0.0
        self.startup_seconds = 0.0
        self.restarts = 0

    @property
    def backend(self) -> Backend | None:
        """The current backend; None before the start, after the end, and while a dead one is replaced."""
        return self._backend

    async def start(self) -> None:
        """Start the first backend. Raises EngineDiedError when it does not come up; nothing is retried."""
        try:
            self._backend = await self._started()
        except AfdcError as exc:
            self._fatal = exc if isinstance(exc, EngineError) else self._cannot_start(exc)
            raise
        except Exception as exc:  # whatever it is, later calls must hear that there is no engine
            self._fatal = self._cannot_start(exc)
            raise self._fatal from exc
        self._watch = asyncio.create_task(self._watch_backend())

    async def close(self) -> None:
        self._fatal = self._fatal or EngineDiedError("the engine was closed")
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        if self._restart is not None:
            self._restart.cancel()
            await asyncio.wait([self._restart])
        for future in list(self._running):
            future.cancel()
        backend, self._backend = self._backend, None
        if backend is not None:
            await backend.close()

    async def run(self, work: Work[T]) -> T:
        """Do `work` on the engine, again after each death that it did not cause.

        Raises:
            RequestRejectedError: the backend refused it, or it killed the engine while it ran alone.
            EngineDiedError: the engine cannot be brought back.
        """
        last = len(self._gate.widths) - 1
        for level in range(last + 1):
            async with self._gate.enter(level):
                backend = await self._current()
                try:
                    return await self._attempt(backend, work)
                except EngineDiedError:
                    await self._replace(backend)
        raise RequestRejectedError("the engine died each time it worked on this, the last time on nothing else")

    async def _current(self) -> Backend:
        if self._restart is not None:
            await asyncio.wait([self._restart])
        if self._fatal is not None:
            raise self._fatal
        if self._backend is None:
            raise EngineError("the engine is not started")
        return self._backend

    async def _attempt(self, backend: Backend, work: Work[T]) -> T:
        """One try. A death cancels the inner future only, which tells it from a cancelled caller."""
        if not self._running:
            self._busy_since = time.monotonic()
        inner: asyncio.Future[T] = asyncio.ensure_future(work(backend))
        self._running.add(inner)  # type: ignore[arg-type]  # a set of futures of any result; Future is invariant
        try:
            return await inner
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not inner.cancelled() or (task is not None and task.cancelling()):
                inner.cancel()
                raise
            raise self._fatal or EngineDiedError("the engine process ended") from None
        finally:
            self._running.discard(inner)
            if not self._running:
                self.busy_seconds += time.monotonic() - self._busy_since

    async def _replace(self, dead: Backend) -> None:
        """Wait for a new backend in place of `dead`; the first caller begins the restart, and none can cancel it."""
        if self._restart is None and self._backend is dead and self._fatal is None:
            self._cancel_running()
            self._restart = asyncio.create_task(self._bring_back(dead))
            self._restart.add_done_callback(self._restart_ended)
        if self._restart is not None:
            await asyncio.wait([self._restart])  # leaves the restart alone when this caller is cancelled
            if self._fatal is not None:
                raise self._fatal

    def _restart_ended(self, task: asyncio.Task[None]) -> None:
        self._restart = None
        if task.cancelled():
            self._fatal = self._fatal or EngineDiedError("the restart of the engine was cancelled")
        elif isinstance(exc := task.exception(), EngineError):
            self._fatal = self._fatal or exc
        elif exc is not None:
            self._fatal = self._fatal or self._cannot_start(exc)

    def _cannot_start(self, exc: BaseException) -> EngineDiedError:
        reason = f"{type(exc).__name__}: {exc}"
        return EngineDiedError(f"the engine cannot be started: {reason}", remedy=f"{self._log} says why")

    async def _bring_back(self, dead: Backend) -> None:
        self._backend = None
        await self._discard(dead)
        while self._backend is None:
            self._count_restart()
            with suppress(EngineDiedError):
                self._backend = await self._restarted()

    def _count_restart(self) -> None:
        if self._fatal is not None:
            raise self._fatal
        if self.restarts >= self._max_restarts:
            self._fatal = EngineDiedError(
                f"the engine died and was restarted {self.restarts} times already",
                remedy=f"{self._log} says why; engine.max_restarts allows more",
            )
            raise self._fatal
        self.restarts += 1

    async def _restarted(self) -> Backend:
        backend = await self._started()
        try:
            await asyncio.wait_for(self._on_restart(backend), self._hang_timeout_s)
        except (EngineError, TimeoutError) as exc:
            await self._discard(backend)
            raise EngineDiedError(f"the restarted engine did not take its adapters back: {exc}") from exc
        except BaseException:  # also a cancellation: nobody else knows of this backend yet
            await self._discard(backend)
            raise
        return backend

    async def _started(self) -> Backend:
        begun = time.monotonic()
        backend = await asyncio.to_thread(self._create)  # the first one imports vLLM
        try:
            await backend.start()
        except BaseException:  # as in `_restarted`
            await self._discard(backend)
            raise
        finally:
            self.startup_seconds += time.monotonic() - begun
        return backend

    async def _discard(self, backend: Backend) -> None:
        await see_through(self._put_away(backend))

    async def _put_away(self, backend: Backend) -> None:
        with suppress(Exception):  # whatever a broken engine does while it is put away, a new one takes its place
            backend.kill()
            await asyncio.wait_for(backend.close(), 30)

    def _cancel_running(self) -> None:
        for future in list(self._running):
            future.cancel()

    async def _watch_backend(self) -> None:
        """Turn a silent death or a hang into the cancellation of what waits for the engine."""
        steps, since = -1, time.monotonic()
        while True:
            await asyncio.sleep(POLL_SECONDS)
            backend, now = self._backend, time.monotonic()
            if backend is None or not self._running or backend.steps() != steps:
                steps, since = (backend.steps() if backend is not None else -1), now
            if backend is None:
                continue
            if now - since > self._hang_timeout_s:
                backend.kill()
            if not backend.alive() or now - since > self._hang_timeout_s:
                self._cancel_running()

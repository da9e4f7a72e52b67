"""Keeps a Backend alive: notices death and hangs, starts a new one, and finds the request that kills it.

A request in flight when the engine dies is suspected. Suspects are tried again a few at a time, and those that see a
second death one at a time: a request that kills the engine alone is rejected, and all others get their answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from afdc.errors import AfdcError, EngineDiedError, EngineError, RequestRejectedError
from afdc_pipeline.seams import Health
from afdc_server.engine.backend import Backend
from afdc_server.engine.limits import SuspicionGate
from afdc_server.engine.patience import POLL_SECONDS, Patience, within
from afdc_server.engine.starting import Starter
from afdc_server.engine.tasks import see_through

T = TypeVar("T")
Work = Callable[[Backend], Awaitable[T]]

UNLIMITED = 1 << 30
PROBATION = 8  # requests tried together after one death: nearly full speed where something else killed the engine


class Supervisor:
    """Runs work on the current backend and replaces the backend when it dies.

    Args:
        starter: brings backends up.
        hang_timeout_s: seconds without an engine step, while work waits, after which the engine counts as dead.
    """

    def __init__(self, starter: Starter, hang_timeout_s: float) -> None:
        self._starter = starter
        self.hang_timeout_s = hang_timeout_s
        self._backend: Backend | None = None
        self._fatal: EngineError | None = None
        self._gate = SuspicionGate((UNLIMITED, PROBATION, 1))
        self._open = asyncio.Event()  # cleared while the device is lent: work waits
        self._open.set()
        self._restart: asyncio.Task[None] | None = None  # of this object, not of the caller that saw the death
        self._running: set[asyncio.Future[object]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._busy_since = 0.0
        self.busy_seconds = 0.0

    @property
    def backend(self) -> Backend | None:
        """The current backend; None before the start, after the end, and while a dead one is replaced."""
        return self._backend

    @property
    def startup_seconds(self) -> float:
        return self._starter.seconds

    @property
    def restarts(self) -> int:
        """All restarts so far."""
        return self._starter.restarts

    async def start(self) -> None:
        """Start the first backend. Raises EngineDiedError when it does not come up; nothing is retried."""
        try:
            self._backend = await self._starter.start()
        except AfdcError as exc:
            self._fatal = exc if isinstance(exc, EngineError) else self._starter.failure(exc)
            raise
        except Exception as exc:  # whatever it is, later calls must hear that there is no engine
            self._fatal = self._starter.failure(exc)
            raise self._fatal from exc
        self._watch = asyncio.create_task(self._watch_backend())

    async def close(self) -> None:
        self._fatal = self._fatal or EngineDiedError("the engine was closed")
        self._open.set()  # what waits for the device must hear of the end
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        if self._restart is not None:
            self._restart.cancel()
            await asyncio.wait([self._restart])
        self._cancel_running()
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
                backend = await self._ready()
                try:
                    answer = await self._attempt(backend, work)
                except EngineDiedError:
                    await self._replace(backend)
                else:
                    self._starter.worked()
                    return answer
        raise RequestRejectedError("the engine died each time it worked on this, the last time on nothing else")

    async def undo(self, work: Work[None]) -> None:
        """Do `work` once on the engine that runs now. Without one there is nothing to undo, and none is waited for.

        Raises:
            EngineError: it failed, or the engine ended.
        """
        if self._backend is not None:
            await self._attempt(self._backend, work)

    async def check(self, canary: Work[object]) -> Health:
        """Do `canary` beside all other work: neither the suspects' queue nor a lent device holds it up.

        A full engine may need longer for it than there is time; then its other answers are the sign of life.

        Raises:
            EngineDiedError: neither the canary nor anything else came back within `hang_timeout_s`.
        """
        before = self._steps()
        try:
            return await within(self.hang_timeout_s, self._check(canary))
        except TimeoutError as exc:
            if self._steps() > before:
                return "ready"
            raise EngineDiedError(
                f"the engine did not answer its one-token check within {self.hang_timeout_s:g} s"
            ) from exc

    async def _check(self, canary: Work[object]) -> Health:
        backend = await self._current()
        if not self._open.is_set():
            return "lent"
        try:
            await self._attempt(backend, canary)
        except EngineDiedError:
            self._begin_restart(backend)
            raise
        return "ready"

    def _steps(self) -> int:
        return self._backend.steps() if self._backend is not None else -1

    async def lend(self, work: Work[None]) -> None:
        """Let what runs finish, do `work`, and hold all further work back until `reclaim`.

        Raises:
            EngineError: the device is lent already, or `work` failed; then nothing is held back.
        """
        if not self._open.is_set():
            raise EngineError("the device is lent already")
        self._open.clear()
        try:
            while not await self._lent(work):
                pass
        except BaseException:  # whatever it was, a cancellation too, waiting work must go on
            self._open.set()
            raise

    async def _lent(self, work: Work[None]) -> bool:
        while self._running:
            await asyncio.wait(self._running)
        backend = await self._current()
        try:
            await self._attempt(backend, work)
        except EngineDiedError:
            await self._replace(backend)
            return False
        return True

    async def reclaim(self, work: Work[None]) -> None:
        """Undo `lend` with `work`, or with a new engine where that fails, and let work in. Nothing lent: nothing done.

        Raises:
            EngineDiedError: the engine cannot be brought back.
        """
        if self._open.is_set():
            return
        try:
            await see_through(self._reclaim(work))
        finally:
            self._open.set()

    async def _reclaim(self, work: Work[None]) -> None:
        backend = await self._current()
        try:
            await self._attempt(backend, work)
        except EngineError:  # an engine that is half awake would take work and never answer
            await self._replace(backend)

    async def _ready(self) -> Backend:
        """The backend, once the device is not lent."""
        while True:
            await self._open.wait()
            backend = await self._current()
            if self._open.is_set():
                return backend

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
        self._begin_restart(dead)
        if self._restart is not None:
            await asyncio.wait([self._restart])  # leaves the restart alone when this caller is cancelled
            if self._fatal is not None:
                raise self._fatal

    def _begin_restart(self, dead: Backend) -> None:
        if self._restart is None and self._backend is dead and self._fatal is None:
            self._cancel_running()
            self._restart = asyncio.create_task(self._bring_back(dead))
            self._restart.add_done_callback(self._restart_ended)

    def _restart_ended(self, task: asyncio.Task[None]) -> None:
        self._restart = None
        if task.cancelled():
            self._fatal = self._fatal or EngineDiedError("the restart of the engine was cancelled")
        elif isinstance(exc := task.exception(), EngineError):
            self._fatal = self._fatal or exc
        elif exc is not None:
            self._fatal = self._fatal or self._starter.failure(exc)

    async def _bring_back(self, dead: Backend) -> None:
        self._backend = None
        self._backend = await self._starter.replace(dead)

    def _cancel_running(self) -> None:
        for future in list(self._running):
            future.cancel()

    async def _watch_backend(self) -> None:
        """Turn a silent death or a hang into the cancellation of what waits for the engine."""
        steps, patience = -1, Patience()
        while True:
            await asyncio.sleep(POLL_SECONDS)
            backend, now = self._backend, self._steps()
            if not self._running or now != steps:
                steps = now
                patience.renew()
            if backend is None:
                continue
            hangs = patience.waited() > self.hang_timeout_s
            if hangs:
                backend.kill()
            if hangs or not backend.alive():
                self._cancel_running()

"""Starts backends, one after the other, within a deadline and a number of tries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from afdc.errors import EngineDiedError, EngineError
from afdc_server.engine.backend import Backend
from afdc_server.engine.patience import within
from afdc_server.engine.postmortem import log_size, remedy
from afdc_server.engine.tasks import see_through

CLOSE_SECONDS = 30.0


class Starter:
    """Makes a started backend, and replaces it when it is dead.

    Args:
        create: makes a backend that is not started yet.
        on_restart: called with each backend that replaces a dead one, before it gets any work.
        timeout_s: seconds that a start may take, and then again `on_restart`, before it counts as failed.
        max_restarts: restarts in a row between which the engine finished no work.
        log: where the engine's own messages are, for error messages.

    Attributes:
        seconds: spent in starts so far.
        restarts: all restarts so far.
    """

    def __init__(
        self,
        create: Callable[[], Backend],
        on_restart: Callable[[Backend], Awaitable[None]],
        *,
        timeout_s: float,
        max_restarts: int,
        log: Path,
    ) -> None:
        self._create = create
        self._on_restart = on_restart
        self._timeout_s = timeout_s
        self._max_restarts = max_restarts
        self._log = log
        self._log_start = 0  # of the last engine's messages
        self._fruitless = 0  # restarts since the engine last finished any work
        self.seconds = 0.0
        self.restarts = 0

    def worked(self) -> None:
        """The present backend has finished some work: earlier restarts no longer count."""
        self._fruitless = 0

    async def start(self) -> Backend:
        """A started backend.

        Raises:
            EngineDiedError: it did not come up, or not in time. Nothing is left of it.
        """
        begun, self._log_start = time.monotonic(), log_size(self._log)
        starting = asyncio.ensure_future(self._create_and_start())
        try:
            return await within(self._timeout_s, starting)
        except TimeoutError as exc:
            raise EngineDiedError(
                f"the engine did not start within {self._timeout_s:g} s",
                remedy=f"{self._log} says how far it came; engine.start_timeout_s allows more",
            ) from exc
        except asyncio.CancelledError:  # it may have come up in the same moment
            if starting.done() and not starting.cancelled() and starting.exception() is None:
                await self.discard(starting.result())
            raise
        finally:
            self.seconds += time.monotonic() - begun

    async def _create_and_start(self) -> Backend:
        backend = await asyncio.to_thread(self._create)  # the first one imports vLLM
        try:
            await backend.start()
        except BaseException:  # also a cancellation: nobody else knows of this backend yet
            await self.discard(backend)
            raise
        return backend

    async def replace(self, dead: Backend) -> Backend:
        """End `dead` and start another, as often as it takes.

        Raises:
            EngineDiedError: too many restarts in a row were in vain.
        """
        await self.discard(dead)
        while True:
            self._count_restart()
            with suppress(EngineDiedError):
                return await self._restarted()

    def _count_restart(self) -> None:
        if self._fruitless >= self._max_restarts:
            raise EngineDiedError(
                f"the engine died, and {self._fruitless} restarts in a row brought no answer",
                remedy=f"{remedy(self._log, self._log_start)}; engine.max_restarts allows more",
            )
        self._fruitless += 1
        self.restarts += 1

    async def _restarted(self) -> Backend:
        backend = await self.start()
        try:
            await within(self._timeout_s, self._on_restart(backend))
        except (EngineError, TimeoutError) as exc:
            await self.discard(backend)
            raise EngineDiedError(f"the restarted engine did not take its adapters back: {exc}") from exc
        except BaseException:  # as in `_create_and_start`
            await self.discard(backend)
            raise
        return backend

    def failure(self, exc: BaseException) -> EngineDiedError:
        """What to tell where a start ended with something that is no EngineError."""
        reason = f"{type(exc).__name__}: {exc}"
        return EngineDiedError(f"the engine cannot be started: {reason}", remedy=remedy(self._log, self._log_start))

    async def discard(self, backend: Backend) -> None:
        """End a backend, whatever state it is in."""
        await see_through(self._put_away(backend))

    async def _put_away(self, backend: Backend) -> None:
        with suppress(Exception):  # whatever a broken engine does while it is put away, a new one takes its place
            backend.kill()
            await asyncio.wait_for(backend.close(), CLOSE_SECONDS)

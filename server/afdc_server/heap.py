"""Garbage collection without long pauses.

CPython's full collection looks at every container that lives: the modules of a model library keep a loop waiting for a
quarter of a second, ten thousand open event streams for a whole one. What has survived one is therefore frozen
(`gc.freeze`), so that the next one looks at newer objects only. Reference counting frees frozen objects as any others;
for cycles among them everything is looked at once an hour.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FULL = 2
THAW_EVERY_S = 3600.0


class CalmCollector:
    """Installs itself with `start`, for the whole process; `stop` gives the collector back as it was."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._thawed = clock()

    def start(self) -> None:
        """Freeze what there is now: modules, the app, the engine's client. What of it is garbage goes in an hour."""
        gc.freeze()
        gc.callbacks.append(self._on_collection)

    def stop(self) -> None:
        """Undo `start`."""
        gc.callbacks.remove(self._on_collection)
        gc.unfreeze()

    def _on_collection(self, phase: str, info: dict[str, Any]) -> None:
        if info["generation"] != FULL:
            return
        if phase == "stop":
            gc.freeze()
        elif self._clock() - self._thawed >= THAW_EVERY_S:
            self._thawed = self._clock()
            gc.unfreeze()


@contextmanager
def calm_collection() -> Iterator[None]:
    """A CalmCollector for the length of the block."""
    collector = CalmCollector()
    collector.start()
    try:
        yield
    finally:
        collector.stop()

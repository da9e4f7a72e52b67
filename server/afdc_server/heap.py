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


@contextmanager
def calm_collection(clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Collect so for the length of the block, in the whole process. What is there now is frozen with its garbage, which
    goes in an hour."""
    thawed = clock()

    def on_collection(phase: str, info: dict[str, Any]) -> None:
        nonlocal thawed
        if info["generation"] != FULL:
            return
        if phase == "stop":
            gc.freeze()
        elif clock() - thawed >= THAW_EVERY_S:
            thawed = clock()
            gc.unfreeze()

    gc.freeze()
    gc.callbacks.append(on_collection)
    try:
        yield
    finally:
        gc.callbacks.remove(on_collection)
        gc.unfreeze()

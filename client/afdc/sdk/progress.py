"""What `wait` shows: a cell in a notebook, a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, TextIO

from afdc.sdk.render import job_line
from afdc.wire.jobs import Job

PLAIN_EVERY_S = 15.0


class View(Protocol):
    """Shows a job. Use as a context manager."""

    def show(self, job: Job) -> None:
        """The state now."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def view_for(job: str, stream: TextIO | None = None) -> View:
    """The view that fits where this program runs.

    Args:
        stream: default: stderr as it is now.
    """
    stream = sys.stderr if stream is None else stream
    if in_notebook():
        from afdc.sdk.notebook import NotebookView

        return NotebookView()
    if stream is not None and stream.isatty():
        from afdc.sdk.terminal import TerminalView

        return TerminalView(job, stream)
    return PlainView(job, stream)


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this. IPython is looked at only if it is there already, as it is in a kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return type(shell).__name__ == "ZMQInteractiveShell"


class PlainView:
    """A line for every change of status or stage, and every 15 seconds."""

    def __init__(self, job: str, stream: TextIO | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.job = job
        self.stream = stream
        self.clock = clock
        self._place: tuple[str, str, int | None] | None = None
        self._said = ("", 0.0)

    def show(self, job: Job) -> None:
        place, line = (job.status, job.stage, job.round), job_line(job)
        is_due = line != self._said[0] and self.clock() - self._said[1] >= PLAIN_EVERY_S
        if self.stream is not None and (place != self._place or is_due):
            self._place, self._said = place, (line, self.clock())
            print(f"{self.job}: {line}", file=self.stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to clear away."""

"""The live line on a terminal, by rich."""

from __future__ import annotations

from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from afdc.sdk.render import job_line
from afdc.wire.jobs import Job


class TerminalView:
    """One line that is redrawn, and the last state of it in the end."""

    def __init__(self, job: str, stream: TextIO) -> None:
        self.job = job
        self.console = Console(file=stream, highlight=False, markup=False)
        self._last: Job | None = None
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("", total=1.0)

    def show(self, job: Job) -> None:
        self._last = job
        self._bar.update(self._task, completed=job.progress.fraction, description=job_line(job))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._last is not None:
            line = Text(f"{self.job}: {job_line(self._last)}")
            self.console.print(line, no_wrap=True, overflow="ellipsis")

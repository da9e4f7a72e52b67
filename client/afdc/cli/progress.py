"""Live progress on stderr: one line a stage with bar and counts on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from afdc.cli.output import duration, visible

ABSOLUTE = frozenset({"step", "steps", "accuracy", "loss"})  # latest value counts; all others add up
PLAIN_EVERY_S = 15.0
AT_ONCE_S = 0.1

DONE, FAILED, LEFT = ("✓", "green"), ("✗", "red"), ("○", "yellow")
"""How a stage ended, as mark and style; LEFT: it goes on without us, or later."""


class StageName(Protocol):
    """What is needed of a `StageKey`."""

    @property
    def round(self) -> int: ...

    @property
    def stage(self) -> str: ...


class StageCounter:
    """One stage: what was done since when. Pure apart from the clock."""

    def __init__(self, title: str, total: int | None, clock: Callable[[], float]) -> None:
        self.title = title
        self.total = total
        self.clock = clock
        self.started = clock()
        self.done = 0
        self.resumed = 0
        self.counts: dict[str, float] = {}

    def add(self, done: int, counts: dict[str, float]) -> None:
        """What is reported at the very start was done by an earlier process: it is no measure of speed."""
        if not self.done and self.seconds < AT_ONCE_S:
            self.resumed = done
        self.done += done
        for name, value in counts.items():
            self.counts[name] = value if name in ABSOLUTE else self.counts.get(name, 0) + value

    def put(self, done: int, counts: Mapping[str, float]) -> None:
        """What was done and counted in all so far."""
        self.done, self.counts = done, dict(counts)

    @property
    def seconds(self) -> float:
        return max(self.clock() - self.started, 0.0)

    @property
    def position(self) -> tuple[float, float | None]:
        """Done and total, in the trainer's steps where it tells them."""
        if self.counts.get("steps"):
            return self.counts.get("step", 0), self.counts["steps"]
        return self.done, self.total

    def details(self) -> str:
        """For example "310/576 · 12/s · kept 200"."""
        done, total = self.position
        parts = [f"{done:,.0f}/{total:,.0f}" if total else f"{done:,.0f}" if done else ""]
        fresh = done - self.resumed
        if fresh > 0 and self.seconds > 1:
            parts.append(f"{fresh / self.seconds:,.1f}/s")
        if tokens := self.counts.get("tokens"):
            parts.append(f"{tokens / max(self.seconds, 1e-3):,.0f} tokens/s")
        if "accuracy" in self.counts:
            parts.append(f"accuracy {self.counts['accuracy']:.1%}")
        hidden = ABSOLUTE | {"tokens"}
        parts += [f"{name.replace('_', ' ')} {n:,.0f}" for name, n in self.counts.items() if name not in hidden and n]
        return " · ".join(filter(None, parts))


class LiveProgress:
    """Implements `afdc_pipeline.seams.Progress`. Use as a context manager: leaving it ends the last stage."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self.clock = clock
        self.live = console.is_terminal and not console.is_dumb_terminal
        self._stage: StageCounter | None = None
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._said = 0.0

    def __enter__(self) -> LiveProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(DONE if kind is None else FAILED)

    def stage(self, key: StageName, title: str, total: int | None) -> None:
        """Begin a stage; the one before it is finished."""
        self.end()
        name = visible(f"{title}, round {key.round}" if key.round else title)
        self._stage = StageCounter(name, total, self.clock)
        self._said = self.clock()
        if self.live:
            self._bar = self._make_bar(name, total)
            self._bar.start()  # kept before it starts: a Ctrl-C in between must still give the cursor back
        else:
            self.console.print(f"- {name}" + (f" ({total:,})" if total else ""))

    def advance(self, done: int, **counts: float) -> None:
        """Add to what the stage has done."""
        if self._stage is None:
            return
        self._stage.add(done, counts)
        self._tell(self._stage)

    def reach(self, done: int, counts: Mapping[str, float], *, quietly: bool = False) -> None:
        """What the stage has done and counted in all; `quietly`: without a line, where there is no bar."""
        if self._stage is None:
            return
        self._stage.put(done, counts)
        if self._bar is not None or not quietly:
            self._tell(self._stage)

    def complete(self, done: int) -> None:
        """All of the stage is done; what was counted stays."""
        if self._stage is not None:
            self.reach(done, self._stage.counts, quietly=True)

    def _tell(self, stage: StageCounter) -> None:
        if self._bar is not None:
            at, total = stage.position
            self._bar.update(self._task, completed=at, total=total, details=stage.details())
        elif self.clock() - self._said > PLAIN_EVERY_S:
            self._said = self.clock()
            self.console.print(f"  {stage.title}: {stage.details()}")

    def note(self, text: str) -> None:
        """A line of its own."""
        self.console.print(Text(f"  {visible(text, 400)}", style="dim"), soft_wrap=not self.live)

    def _make_bar(self, name: str, total: int | None) -> Progress:
        bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[details]}", style="dim", markup=False),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            refresh_per_second=8,
            get_time=self.clock,
        )
        self._task = bar.add_task(name, total=total, details="")
        return bar

    def end(self, how: tuple[str, str] = DONE) -> None:
        """Collapse the stage, if there is one, to one line."""
        stage, self._stage = self._stage, None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if stage is None:
            return
        mark, style = how
        line = Text.assemble((f"{mark} ", style), f"{stage.title:<44} ", (f"{duration(stage.seconds):>10}  ", "bold"))
        line.append(stage.details(), style="dim")
        if self.live:
            self.console.print(line, no_wrap=True, overflow="ellipsis")
        else:
            self.console.print(line, soft_wrap=True)

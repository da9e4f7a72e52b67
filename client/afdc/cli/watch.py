"""`afdc watch`: a job's events as live progress, and its result in the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import Field, ValidationError

from afdc.cli.connect import ServerFlags, connect
from afdc.cli.job_view import check_end, show_job
from afdc.cli.output import message_console, visible
from afdc.cli.progress import DONE, FAILED, LEFT, LiveProgress
from afdc.errors import InterruptedRunError
from afdc.result import RoundResult
from afdc.sdk.client import Client
from afdc.sdk.exceptions import UnreachableError
from afdc.wire.common import Reply
from afdc.wire.jobs import Event, Job

WAITS = {
    "job_queued": "wait in the queue",
    "job_running": "prepare",
    "job_pausing": "stop at the next safe point",
    "job_paused": "paused, until afdc resume",
    "job_cancelling": "stop for good",
    "job_finalizing": "publish the results",
}
ENDS = {"job_succeeded": DONE, "job_failed": FAILED, "job_cancelled": LEFT, "job_expired": LEFT}
BREAKS = frozenset({"job_queued", "job_pausing", "job_paused", "job_cancelling"})
NOT_COUNTS = frozenset({"done", "total", "stage", "round", "fraction", "eta_seconds"})


@dataclass(frozen=True)
class Stage:
    """What `LiveProgress` wants to know of a stage."""

    round: int
    stage: str


class StageStarted(Reply):
    """The data of `stage_started`."""

    round: int = 0
    stage: str = ""
    title: str = ""
    total: int | None = Field(default=None, ge=0)


class EventClock:
    """The server's time, in seconds: that of the last event, and what has passed here since it came."""

    def __init__(self, here: Callable[[], float] = time.monotonic) -> None:
        self._here = here
        self._at = 0.0
        self._came = here()

    def set(self, at: datetime) -> None:
        """An event of this time has come."""
        self._at, self._came = at.timestamp(), self._here()

    def __call__(self) -> float:
        return self._at + self._here() - self._came


class EventView:
    """Shows events. Those up to `since` are history: their stages are shown, but not every step of the way."""

    def __init__(self, progress: LiveProgress, clock: EventClock, since: datetime) -> None:
        self._progress = progress
        self._clock = clock
        self._since = since
        self._stage: Stage | None = None
        self._total: int | None = None
        self._handlers: dict[str, Callable[[Event], None]] = {
            "stage_started": self._begin,
            "progress": self._reach,
            "stage_finished": self._finish,
            "round_finished": self._round,
            "note": self._note,
        }

    def show(self, event: Event) -> None:
        """One event; kinds that this version does not know are passed over."""
        self._clock.set(event.at)
        if event.kind in ENDS or event.kind in BREAKS:
            self._progress.end(ENDS.get(event.kind, LEFT if self._stage else DONE))
            self._stage = None
        if event.kind in WAITS:
            self._progress.stage(Stage(0, event.kind), WAITS[event.kind], None)
        elif event.kind in self._handlers:
            self._handlers[event.kind](event)

    def _begin(self, event: Event) -> None:
        started = _parse(StageStarted, event.data)
        if started is not None:
            self._stage = Stage(started.round, started.stage)
            self._total = started.total
            self._progress.stage(self._stage, started.title or started.stage, started.total)

    def _reach(self, event: Event) -> None:
        if self._stage is not None and event.data.get("stage") == self._stage.stage:
            found = numbers(event.data)
            counts = {visible(name, 30): n for name, n in found.items() if name not in NOT_COUNTS}
            self._progress.reach(int(found.get("done", 0)), counts, quietly=event.at <= self._since)

    def _finish(self, event: Event) -> None:
        """Stages that are too short to be shown end, too."""
        if self._stage is not None and event.data.get("stage") == self._stage.stage:
            if self._total:
                self._progress.complete(self._total)
            self._progress.end()
            self._stage = None

    def _round(self, event: Event) -> None:
        result = _parse(RoundResult, event.data)
        if result is not None:
            self._progress.note(round_line(result))

    def _note(self, event: Event) -> None:
        self._progress.note(str(event.data.get("text", "")))


def watch_command(flags: ServerFlags, job: str, *, as_json: bool) -> None:
    """Body of `afdc watch`.

    Raises:
        AfdcError: the job did not succeed, or it could not be followed; its exit code says why.
    """
    with connect(flags) as client:
        watch(client, job, as_json=as_json)


def watch(client: Client, id: str, *, as_json: bool) -> None:
    """Follow a job to its end and show what came of it.

    Raises:
        InterruptedRunError: Ctrl-C; the job goes on.
        AfdcError: as `watch_command`.
    """
    try:
        job = follow(client, client.jobs.get(id).job)
        show_job(job, client.jobs.rounds(job.id), as_json=as_json)
    except KeyboardInterrupt:
        raise InterruptedRunError("no longer watching: the job goes on", remedy=come_back(id)) from None
    check_end(job)


def follow(client: Client, job: Job) -> Job:
    """Show a job's events on stderr until it is over; returns it as it ended.

    Raises:
        UnreachableError: the server stays away.
    """
    clock = EventClock()
    with LiveProgress(message_console(), clock) as progress:
        view, last = EventView(progress, clock, job.updated_at), 0
        try:
            while True:
                for event in client.jobs.stream(job.id, after=last):
                    view.show(event)
                    last = event.id
                job = client.jobs.get(job.id).job
                if job.is_terminal:
                    return job
        except UnreachableError as exc:
            progress.end(LEFT)
            raise UnreachableError(exc.message, sent=exc.sent, remedy=come_back(job.id)) from exc
        except KeyboardInterrupt:
            progress.end(LEFT)
            raise


def come_back(id: str) -> str:
    """What to type to go on watching."""
    return f"Come back to it with: afdc watch {visible(id)}"


def round_line(result: RoundResult) -> str:
    """For example "round 1: 200 of 576 texts kept, 3.2% flipped, held-out 81.0%, eval 75.0%"."""
    parts = [f"{result.selected:,} of {result.candidates:,} texts kept"]
    if result.flip_rate is not None:
        parts.append(f"{result.flip_rate:.1%} flipped")
    named = (("held-out", result.holdout), ("eval", result.eval))
    parts += [f"{name} {found.score:.1%}" for name, found in named if found is not None]
    if not result.activated:
        parts.append("adapter not used")
    return f"round {result.round}: {', '.join(parts)}"


def numbers(data: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the values."""
    found = {name: n for name, n in data.items() if isinstance(n, int | float) and not isinstance(n, bool)}
    return {name: float(n) for name, n in found.items() if abs(n) < 1e18}


def _parse(model: type[Any], data: Mapping[str, Any]) -> Any:
    """The data as a `model`; None where a newer server says it in another way."""
    try:
        return model.model_validate(data)
    except ValidationError:
        return None

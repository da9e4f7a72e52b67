"""The Trainer seam as a subprocess: `python -m afdc_trainer job.json`, watched until its result lies there.

The folder of `job.result` is the round's folder: job.json, progress.jsonl and result.json lie side by side in it.
"""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import Process
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from afdc.errors import TrainerError
from afdc.files import write_json
from afdc.training import JOB_FILE, PROGRESS_FILE, TrainJob, TrainResult, published_result
from afdc_server.child import cause_of, log_size, run_module, signal_of

POLL_S = 0.25
TRIES = 2

OnProgress = Callable[[int, int, float], None]


class SubprocessTrainer:
    """Fits one adapter at a time in a child process (a process group of its own, one process a GPU)."""

    def __init__(self, logs: Path, on_progress: OnProgress | None = None) -> None:
        """`logs`: folder for the children's output. `on_progress(step, steps, loss)` is called after each step."""
        self.logs = logs
        self.on_progress = on_progress

    async def fit(self, job: TrainJob) -> TrainResult:
        """Run to the end, resuming what an earlier call left; a job that is done already starts nothing.

        A child killed by a signal is started once more and goes on from its last checkpoint.

        Raises:
            TrainerError: the run failed; the message has the reason of each try, or the end of its log.
        """
        log = self.logs / f"trainer-{job.name}.log"
        if (done := published_result(job)) is not None:
            return done
        _prepare(job)
        causes: list[TrainerError] = []
        for _ in range(TRIES):
            job.result.unlink(missing_ok=True)
            seen = log_size(log)
            watch = partial(self._watch, path=job.result.parent / PROGRESS_FILE)
            code = await run_module("afdc_trainer", job.result.parent / JOB_FILE, log, watch)
            if (done := published_result(job)) is not None:
                return done
            causes.append(cause_of(TrainResult, job.result, code, log, seen))
            if signal_of(code) is None:
                break
        raise _failure(job, causes)

    async def _watch(self, process: Process, path: Path) -> None:
        """Report new progress lines until the process ends."""
        seen = path.stat().st_size if path.exists() else 0
        ended = asyncio.ensure_future(process.wait())
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=POLL_S)
                seen = self._report(path, seen)
        finally:
            ended.cancel()

    def _report(self, path: Path, seen: int) -> int:
        """Report the whole lines behind byte `seen`, and return how far was read."""
        if self.on_progress is None or not path.exists():
            return seen
        with path.open("rb") as stream:
            stream.seek(seen)
            lines, newline, _ = stream.read().rpartition(b"\n")
        for line in lines.splitlines():
            entry = json.loads(line)
            self.on_progress(entry["step"], entry["steps"], entry["loss"])
        return seen + len(lines) + len(newline)


def _prepare(job: TrainJob) -> None:
    write_json(job.result.parent / JOB_FILE, job.model_dump(mode="json"))


def _failure(job: TrainJob, causes: Sequence[TrainerError]) -> TrainerError:
    """What to tell: the last cause, and the first one where that was another."""
    last, first = causes[-1], causes[0]
    if len(causes) == 1:
        return TrainerError(f"training {job.name} failed: {last.message}", remedy=last.remedy)
    if first.message == last.message:
        return TrainerError(f"training {job.name} failed {len(causes)} times: {last.message}", remedy=last.remedy)
    return TrainerError(
        f"training {job.name} failed: {first.message}. Started again it failed, too: {last.message}", remedy=last.remedy
    )

"""The Trainer seam as a subprocess: `python -m afdc_trainer job.json`, watched until its result lies there.

The folder of `job.result` is the round's folder: job.json, progress.jsonl and result.json lie side by side in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from afdc.errors import TrainerError
from afdc.files import write_json
from afdc.training import (
    JOB_FILE,
    PARENT_VARIABLE,
    PROGRESS_FILE,
    SIGNALLED,
    TrainJob,
    TrainResult,
    published_result,
    signal_remedy,
)
from afdc_server.engine.environment import preloaded_libraries

POLL_S = 0.25
GRACE_S = 5.0
TRIES = 2
TAIL_LINES = 15

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
        _prepare(job, log)
        causes: list[TrainerError] = []
        for _ in range(TRIES):
            job.result.unlink(missing_ok=True)
            seen = log.stat().st_size if log.exists() else 0
            code = await self._run(job.result.parent, log)
            if (done := published_result(job)) is not None:
                return done
            number = signal_of(code)
            causes.append(_cause(job, code, number, log, seen))
            if number is None:
                break
        raise _failure(job, causes)

    async def _run(self, folder: Path, log: Path) -> int:
        """One child, from start to exit code (negative: the signal that killed it); ended when we are cancelled."""
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "afdc_trainer", str(folder / JOB_FILE)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=trainer_environment(),
                start_new_session=True,  # Ctrl-C reaches this process alone, and all ranks end together
            )
        try:
            await self._watch(process, folder / PROGRESS_FILE)
        finally:
            await _end(process)
        return process.returncode or 0

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


def trainer_environment() -> dict[str, str]:
    """This process's environment, with what the trainer needs to be fast; what the user has set stays."""
    environment = dict(os.environ)
    cores = str(len(os.sched_getaffinity(0)))
    defaults = {"OMP_NUM_THREADS": cores, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    for name, value in defaults.items():
        environment.setdefault(name, value)
    preloaded = [*filter(None, [environment.get("LD_PRELOAD")]), *preloaded_libraries()]
    if preloaded:
        environment["LD_PRELOAD"] = ":".join(dict.fromkeys(preloaded))
    environment[PARENT_VARIABLE] = str(os.getpid())
    return environment


def _prepare(job: TrainJob, log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    write_json(job.result.parent / JOB_FILE, job.model_dump(mode="json"))


async def _end(process: Process) -> None:
    """Ask the child's whole group to end, then make it."""
    if process.returncode is None:
        _signal(process, signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), GRACE_S)
    if process.returncode is None:
        _signal(process, signal.SIGKILL)
        await process.wait()


def _signal(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def signal_of(code: int) -> int | None:
    """The signal that ended the child, or one of the training processes that it started; None: it ended by itself."""
    number = -code if code < 0 else code - SIGNALLED
    return number if number in set(signal.Signals) else None


def _cause(job: TrainJob, code: int, number: int | None, log: Path, seen: int) -> TrainerError:
    """Why a try ended: the reason in result.json, else the signal or exit code with what it added to the log."""
    with suppress(FileNotFoundError, ValidationError):
        result = TrainResult.model_validate_json(job.result.read_bytes())
        if result.status == "failed":
            return TrainerError(result.error, remedy=f"The log is {log}")
    lines = log.read_bytes()[seen:].decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
    where = "\n".join([f"The log is {log}", *lines])
    if number is None:
        return TrainerError(f"it ended with exit code {code} and without a result", remedy=where)
    remedy = ". ".join(filter(None, [signal_remedy(number), where]))
    return TrainerError(f"it was killed by {signal.Signals(number).name}", remedy=remedy)


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

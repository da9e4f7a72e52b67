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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from afdc.errors import TrainerError
from afdc.files import write_json
from afdc.training import JOB_FILE, TrainJob, TrainResult, published_result
from afdc_server.engine.environment import preloaded_libraries

PROGRESS_FILE = "progress.jsonl"
PARENT_VARIABLE = "AFDC_PARENT_PID"  # afdc_trainer ends itself when this process ends
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
            TrainerError: the run failed; the message has its reason, or the end of its log.
        """
        folder = job.result.parent
        log = self.logs / f"trainer-{job.name}.log"
        if (done := published_result(job)) is not None:
            return done
        _prepare(job, log)
        code = 0
        for _ in range(TRIES):
            code = await self._run(folder, log)
            if code >= 0:
                break
        if (done := published_result(job)) is not None:
            return done
        raise _failure(job, code, log)

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
    job.result.unlink(missing_ok=True)
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


def _failure(job: TrainJob, code: int, log: Path) -> TrainerError:
    """What to tell: the reason in result.json, else the signal or exit code with the end of the log."""
    with suppress(FileNotFoundError, ValidationError):
        result = TrainResult.model_validate_json(job.result.read_bytes())
        if result.status == "failed":
            return TrainerError(f"training {job.name} failed: {result.error}")
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    tail = "\n".join(["", *lines]) if lines else ""
    if code == -signal.SIGKILL:
        remedy = f"Memory has probably run out: lower train.batch_size or close programs. Log: {log}{tail}"
        return TrainerError(f"training {job.name} was killed {TRIES} times", remedy=remedy)
    how = f"by signal {-code}" if code < 0 else f"with exit code {code} and without a result"
    return TrainerError(f"training {job.name} ended {how}", remedy=f"See {log}{tail}")

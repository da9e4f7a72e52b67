"""A child process of the trainer's package: started on a job file, watched, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from afdc.encoding import EncoderResult
from afdc.errors import TrainerError
from afdc.training import PARENT_VARIABLE, SIGNALLED, TrainResult, signal_remedy
from afdc_server.engine.environment import preloaded_libraries

GRACE_S = 5.0
TAIL_LINES = 15


async def run_module(
    module: str, job: Path, log: Path, watch: Callable[[Process], Awaitable[None]] | None = None
) -> int:
    """`python -m module job`, from start to exit code (negative: the signal that killed it).

    It is ended when we are cancelled.

    Args:
        log: its output is appended to this file.
        watch: awaited beside it; returns when the process has ended.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, str(job)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=trainer_environment(),
            start_new_session=True,  # Ctrl-C reaches this process alone, and all ranks end together
        )
    try:
        if watch is not None:
            await watch(process)
        await process.wait()
    finally:
        await _end(process)
    return process.returncode or 0


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


def cause_of(
    kind: type[TrainResult] | type[EncoderResult], path: Path, code: int, log: Path, seen: int
) -> TrainerError:
    """Why a child failed: the reason in its result.json, else what it left in its log behind byte `seen`."""
    with suppress(FileNotFoundError, ValidationError):
        result = kind.model_validate_json(path.read_bytes())
        if result.status == "failed":
            return TrainerError(result.error, remedy=f"The log is {log}")
    return _told_by_log(code, log, seen)


def _told_by_log(code: int, log: Path, seen: int) -> TrainerError:
    """Why a child ended without a word of its own: the signal or exit code, with what it added to the log."""
    number = signal_of(code)
    lines = log.read_bytes()[seen:].decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
    where = "\n".join([f"The log is {log}", *lines])
    if number is None:
        return TrainerError(f"it ended with exit code {code} and without a result", remedy=where)
    remedy = ". ".join(filter(None, [signal_remedy(number), where]))
    return TrainerError(f"it was killed by {signal.Signals(number).name}", remedy=remedy)


def log_size(log: Path) -> int:
    """Bytes that earlier children left in a log."""
    return log.stat().st_size if log.exists() else 0

"""Several training processes on this machine, one a GPU, and the real reason when one of them fails.

The processes find each other as those of torchrun do (RANK, WORLD_SIZE, MASTER_ADDR, ...). When one fails, the others
fail after it with broken connections, or wait for ever. So each leaves its own reason in a file with the time, and this
process, which sees how each of them ends, tells the one that came first.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

from pydantic import ValidationError

from afdc.errors import TrainerError
from afdc.files import write_json
from afdc.task import Model
from afdc.training import PARENT_VARIABLE, SIGNALLED, TrainJob, TrainResult, published_result, signal_remedy

FAILURE_VARIABLE = "AFDC_FAILURE_FILE"
UNFORESEEN = 1
POLL_S = 0.1
GRACE_S = 15.0


class Failure(Model):
    """What a training process leaves. `at`: seconds of the machine's monotonic clock, the same in every process."""

    error: str
    exit_code: int
    at: float


def leave_failure(path: Path, error: str, exit_code: int) -> None:
    """Called by the process that fails, while the others still wait for it: its time is before theirs."""
    failure = Failure(error=error, exit_code=exit_code, at=time.monotonic())
    write_json(path, failure.model_dump(mode="json"))


def launch(job: TrainJob, arguments: Sequence[str], count: int) -> int:
    """Train with `count` processes; returns the exit code. Where they fail, result.json says which one and why."""
    files = [job.result.parent / f"failure-{rank}.json" for rank in range(count)]
    for path in files:
        path.unlink(missing_ok=True)
    codes = wait_for(start(arguments, files))
    if not any(codes.values()):
        return 0
    error, code = first_cause(files, codes)
    print(f"error: {error}", file=sys.stderr)
    if published_result(job) is None:
        write_json(job.result, TrainResult(status="failed", error=str(error)).model_dump(mode="json"))
    return code


def start(arguments: Sequence[str], files: Sequence[Path]) -> list[subprocess.Popen[bytes]]:
    """One process a failure file, in this process's group, so that a signal to the group reaches all."""
    count = len(files)
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(max(1, threads // count)),
        PARENT_VARIABLE: str(os.getpid()),
    }
    children = []
    for rank, path in enumerate(files):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), FAILURE_VARIABLE: str(path)}
        command = [sys.executable, "-m", "afdc_trainer", *arguments]
        children.append(subprocess.Popen(command, env={**os.environ, **shared, **own}))
    return children


def wait_for(children: Sequence[subprocess.Popen[bytes]]) -> dict[int, int]:
    """Exit codes by rank of the processes that ended by themselves.

    The others are ended some time after a failure, or after the first process, which publishes: they have nothing left
    to do, and may wait for each other.
    """
    codes: dict[int, int] = {}
    deadline = None
    while len(codes) < len(children) and (deadline is None or time.monotonic() < deadline):
        codes = {rank: code for rank, child in enumerate(children) if (code := child.poll()) is not None}
        if deadline is None and (0 in codes or any(codes.values())):
            deadline = time.monotonic() + GRACE_S
        time.sleep(POLL_S)
    for child in children:
        if child.poll() is None:
            child.kill()
            child.wait()
    return codes


def first_cause(files: Sequence[Path], codes: Mapping[int, int]) -> tuple[TrainerError, int]:
    """Of all that went wrong the failure that the others follow from, and the exit code that tells it.

    A reason of our own says what is wrong and never follows from another process. A signal follows from nothing either,
    but for SIGABRT, with which NCCL ends a process whose peer is gone. What is left is told in the order of time.
    """
    told = _read_failures(files)
    ours = [(rank, failure) for rank, failure in told if failure.exit_code != UNFORESEEN]
    aborted = [(rank, -code) for rank, code in codes.items() if code < 0]
    killed = [(rank, number) for rank, number in aborted if number != signal.SIGABRT]
    of = f"of {len(files)}"
    if ours or (told and not killed):
        rank, failure = (ours or told)[0]
        return TrainerError(f"process {rank + 1} {of}: {failure.error}"), failure.exit_code
    if aborted:
        rank, number = (killed or aborted)[0]
        what = f"process {rank + 1} {of} was killed by {signal.Signals(number).name}"
        return TrainerError(what, remedy=signal_remedy(number)), SIGNALLED + number
    rank, code = next((rank, code) for rank, code in codes.items() if code)
    return TrainerError(f"process {rank + 1} {of} ended with exit code {code} and without a reason"), code


def _read_failures(files: Sequence[Path]) -> list[tuple[int, Failure]]:
    """What the processes left, by rank, the earliest first."""
    found = []
    for rank, path in enumerate(files):
        with suppress(FileNotFoundError, ValidationError):
            found.append((rank, Failure.model_validate_json(path.read_bytes())))
    return sorted(found, key=lambda one: one[1].at)


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

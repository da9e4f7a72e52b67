"""`python -m afdc_trainer job.json`: one training run in a process of its own.

Writes `result.json` last of all, also when it fails. Exit codes are those of afdc.errors.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path

from pydantic import ValidationError

from afdc.errors import AfdcError, TrainerError
from afdc.files import write_json
from afdc.training import TrainJob, TrainResult, published_result

PARENT_VARIABLE = "AFDC_PARENT_PID"
GPU_ROWS = 4


def main(arguments: list[str]) -> int:
    """Run the job of the given file and return the exit code."""
    if len(arguments) != 1:
        print("usage: python -m afdc_trainer job.json", file=sys.stderr)
        return 2
    try:
        job = TrainJob.model_validate_json(Path(arguments[0]).read_bytes())
    except (OSError, ValidationError) as exc:
        print(f"{arguments[0]} is not a training job: {exc}", file=sys.stderr)
        return 2
    watch_parent()
    if published_result(job) is not None:
        return 0
    spread_over_gpus(job, arguments)
    return run(job)


def run(job: TrainJob) -> int:
    """Train, and leave a result whatever happens."""
    first = os.environ.get("RANK", "0") == "0"
    try:
        result, code = train(job), 0
    except AfdcError as exc:
        print(f"error: {exc}", file=sys.stderr)
        result, code = TrainResult(status="failed", error=str(exc)), exc.exit_code
    except Exception as exc:  # noqa: BLE001,RUF100  # last stop of the process: the parent reads the reason in result.json
        traceback.print_exc()
        result, code = TrainResult(status="failed", error=f"{type(exc).__name__}: {exc}"), 1
    if first:
        write_json(job.result, result.model_dump(mode="json"))
    return code


def train(job: TrainJob) -> TrainResult:
    """`afdc_trainer.run.fit`, with an allocation failure outside the steps told as a TrainerError."""
    from afdc_trainer.loop import is_out_of_memory
    from afdc_trainer.run import fit

    try:
        return fit(job)
    except (MemoryError, RuntimeError) as exc:
        if not is_out_of_memory(exc):
            raise
        raise TrainerError(f"out of memory: {exc}", remedy="Take a smaller model, or free device memory") from exc


def spread_over_gpus(job: TrainJob, arguments: list[str]) -> None:
    """Where torch sees several GPUs and the batch feeds them, become torchrun with one process a GPU."""
    if "WORLD_SIZE" in os.environ or job.config.device == "cpu":
        return
    import torch

    processes = min(torch.cuda.device_count(), job.config.batch_size // GPU_ROWS)
    if processes > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        os.execv(sys.executable, [sys.executable, *launch, "-m", "afdc_trainer", *arguments])  # noqa: S606  # our own interpreter


def watch_parent() -> None:
    """End this process when the one that started it ends, even by kill -9: nobody would read the result."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent:
        threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()


def _end_with(parent: int) -> None:
    import select

    try:
        handle = os.pidfd_open(parent)
        select.select([handle], [], [])
    except ProcessLookupError:
        pass
    os._exit(143)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

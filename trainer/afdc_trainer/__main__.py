"""`python -m afdc_trainer job.json`: one training run in a process of its own.

Writes `result.json` last of all, also when it fails. Exit codes are those of afdc.errors.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from afdc.errors import AfdcError, TrainerError, UsageError
from afdc.files import write_json
from afdc.training import TrainJob, TrainResult, published_result
from afdc_trainer.launch import FAILURE_VARIABLE, UNFORESEEN, launch, leave_failure
from afdc_trainer.process import read_job, watch_parent

PROCESSES_VARIABLE = "AFDC_TRAIN_PROCESSES"
GPU_ROWS = 4


def main(arguments: list[str]) -> int:
    """Run the job of the given file and return the exit code."""
    job = read_job(arguments, TrainJob, "afdc_trainer", "a training job")
    if job is None:
        return 2
    watch_parent()
    if published_result(job) is not None:
        return 0
    return run(job, arguments)


def run(job: TrainJob, arguments: list[str]) -> int:
    """Train, here or in several processes, and leave a result whatever happens."""
    try:
        if (count := processes(job)) > 1:
            return launch(job, arguments, count)
        result, code = train(job), 0
    except AfdcError as exc:
        print(f"error: {exc}", file=sys.stderr)
        result, code = TrainResult(status="failed", error=str(exc)), exc.exit_code
    except Exception as exc:  # noqa: BLE001,RUF100  # last stop of the process: the parent reads the reason in result.json
        traceback.print_exc()
        result, code = TrainResult(status="failed", error=f"{type(exc).__name__}: {exc}"), UNFORESEEN
    if code and FAILURE_VARIABLE in os.environ:
        leave_failure(Path(os.environ[FAILURE_VARIABLE]), result.error, code)
    elif os.environ.get("RANK", "0") == "0":
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


def processes(job: TrainJob) -> int:
    """How many train: one a GPU that the batch feeds, or what the user says. 1 in a process that others started, and
    where nothing is trained.

    Raises:
        UsageError: the user's number is none.
    """
    if "WORLD_SIZE" in os.environ or job.average:
        return 1
    if wanted := os.environ.get(PROCESSES_VARIABLE):
        if not (wanted.isdecimal() and int(wanted)):
            raise UsageError(f"{PROCESSES_VARIABLE} is {wanted!r}", remedy="Give a number of processes, or unset it")
        return int(wanted)
    if job.config.device == "cpu":
        return 1
    import torch

    return max(1, min(torch.cuda.device_count(), job.config.batch_size // GPU_ROWS))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

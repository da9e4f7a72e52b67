"""Whole training jobs for tests: in a process of their own, or by the same entry point in this one."""

from __future__ import annotations

import torch

from afdc.adapter import WEIGHTS_FILE
from afdc.errors import TrainerError
from afdc.files import write_json
from afdc.training import JOB_FILE, TrainJob, TrainResult
from afdc_server.trainer import SubprocessTrainer
from afdc_trainer.__main__ import main


async def fit(job: TrainJob) -> TrainResult:
    """As the product trains."""
    return await SubprocessTrainer(job.result.parent / "logs").fit(job)


def fit_here(job: TrainJob) -> TrainResult:
    """`python -m afdc_trainer job.json` without the process, whose start takes longer than a fit of the tiny model.

    Raises:
        TrainerError: the job failed, for the reason that its result tells.
    """
    path = job.result.parent / JOB_FILE
    write_json(path, job.model_dump(mode="json"))
    try:
        code = main([str(path)])
    finally:
        torch.use_deterministic_algorithms(False)
    result = TrainResult.model_validate_json(job.result.read_bytes())
    if code:
        raise TrainerError(result.error)
    return result


def weights_of(result: TrainResult) -> bytes:
    assert result.adapter is not None
    return (result.adapter / WEIGHTS_FILE).read_bytes()

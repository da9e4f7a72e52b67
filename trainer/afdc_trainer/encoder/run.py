"""An encoder job from its files to its scores."""

from __future__ import annotations

import time

import torch

from afdc.encoding import EncoderJob, EncoderResult, encoding_digest
from afdc.files import sha256_file
from afdc_trainer.encoder.fit import run_fit
from afdc_trainer.run import make_deterministic


def run(job: EncoderJob) -> EncoderResult:
    """All fits, one after another.

    Raises:
        AfdcError: says what is wrong with the encoder, its device or the rows.
    """
    started, inputs = time.perf_counter(), encoding_digest(job)
    make_deterministic(job.config.device == "cpu" or not torch.cuda.is_available())
    for fit in job.fits:
        run_fit(job, fit)
    hashes = {fit.scores.name: sha256_file(fit.scores) for fit in job.fits}
    seconds = time.perf_counter() - started
    return EncoderResult(status="succeeded", inputs=inputs, scores=hashes, seconds=seconds)

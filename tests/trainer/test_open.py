"""A round of an open task: answers are learnt, and a seed's answer is the probe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from afdc.adapter import verify_adapter
from afdc.errors import TrainerError
from afdc.task import Task
from afdc.training import TrainJob, TrainRow
from tests.trainer.conftest import JobMaker, codec_of
from tests.trainer.fits import fit_here
from tests.trainer.test_run import peft_logprobs

pytestmark = pytest.mark.trainer

TASK = Task(instruction="Name the product.", labels=None)
ROWS = [
    TrainRow(text="The kettle leaks", completion="kettle", gold=True),
    TrainRow(text="我的灯坏了", completion="灯", gold=True),
    TrainRow(text="A scratch on the desk", completion="the desk\nin <|im_end|> oak", weight=0.5),
]


def open_job(make_job: JobMaker, model: Path, rows: list[TrainRow]) -> TrainJob:
    codec = codec_of(model, TASK)
    probes = tuple(row.text for row in ROWS if row.gold)
    config = {"dropout": 0.0, "batch_size": 8, "learning_rate": 0.01}  # every step sees every row
    job = make_job(model, task=TASK, template_hash=codec.template_hash, probes=probes, config=config, epochs=8)
    job.rows.write_bytes(b"".join(row.to_line() for row in rows))
    return job


def test_an_adapter_of_answers_is_published_with_their_probes(tiny: Path, make_job: JobMaker) -> None:
    job = open_job(make_job, tiny, ROWS)
    result = fit_here(job)
    assert result.adapter is not None
    assert result.losses[-1] < result.losses[0]
    manifest = verify_adapter(result.adapter)
    assert manifest.task == TASK
    assert [(probe.text, probe.answer) for probe in manifest.probes] == [(r.text, r.completion) for r in ROWS[:2]]
    codec = codec_of(tiny, TASK)
    for probe in manifest.probes:
        expected = peft_logprobs(job, result.adapter, probe.text, probe.scored_ids(codec))
        assert np.abs(np.array(probe.logprobs) - expected).max() < 1e-3


def test_a_row_with_targets_is_no_row_of_an_open_task(tiny: Path, make_job: JobMaker) -> None:
    job = open_job(make_job, tiny, [*ROWS, TrainRow(text="x", targets={0: 1.0})])
    with pytest.raises(TrainerError, match="needs a completion"):
        fit_here(job)

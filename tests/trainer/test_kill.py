"""Kills: real SIGKILLs at any moment, a cancelled parent, a dead parent, torn checkpoints, two processes."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from afdc.training import TrainJob, TrainResult
from afdc_server.child import trainer_environment
from afdc_server.trainer import SubprocessTrainer
from tests.trainer.conftest import JobMaker
from tests.trainer.fits import weights_of

pytestmark = pytest.mark.trainer
EVERY_STEP = {"checkpoint_every": 1}
TRAIN_AND_LOOK = """
import sys
import torch
from afdc_trainer.__main__ import main
code = main(sys.argv[1:])
assert not torch.distributed.is_initialized(), "an open process group can abort the process at its end"
sys.exit(code)
"""


def start(job: TrainJob) -> subprocess.Popen[bytes]:
    path = job.result.parent / "job.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    return subprocess.Popen([sys.executable, "-m", "afdc_trainer", str(path)], env=trainer_environment())


def steps_done(job: TrainJob) -> int:
    progress = job.result.parent / "progress.jsonl"
    return progress.read_bytes().count(b"\n") if progress.exists() else 0


def wait_for(condition: object, process: subprocess.Popen[bytes]) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 120
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline, "the trainer makes no progress"
        time.sleep(0.002)


def finish(job: TrainJob) -> TrainResult:
    assert start(job).wait(timeout=180) == 0
    return TrainResult.model_validate_json(job.result.read_bytes())


def test_killed_at_any_moment_the_same_job_ends_with_the_same_bytes(tiny: Path, make_job: JobMaker) -> None:
    undisturbed = finish(make_job(tiny, "whole", config=EVERY_STEP, epochs=40))
    job = make_job(tiny, "killed", config=EVERY_STEP, epochs=40)
    random = np.random.default_rng(0)
    for target in (3, 25, 50):
        process = start(job)
        wait_for(lambda target=target: steps_done(job) >= target, process)
        time.sleep(float(random.uniform(0, 0.02)))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    result = finish(job)
    assert result.resumed_at_step >= 40
    assert result.steps == undisturbed.steps
    assert result.losses == undisturbed.losses
    assert weights_of(result) == weights_of(undisturbed)
    assert [path.is_dir() for path in job.adapters.iterdir()] == [True]


def test_torn_and_foreign_checkpoints_are_ignored_and_removed(tiny: Path, make_job: JobMaker) -> None:
    job = make_job(tiny, "torn", config=EVERY_STEP, epochs=40)
    process = start(job)
    wait_for(lambda: steps_done(job) >= 5, process)
    process.kill()
    process.wait()
    whole = next(job.work.glob("checkpoint-*.safetensors"))
    data = whole.read_bytes()
    flipped = bytearray(data)
    flipped[-1] ^= 1
    (job.work / "checkpoint-00000070.safetensors").write_bytes(data[:-100])
    (job.work / "checkpoint-00000071.safetensors").write_bytes(bytes(flipped))
    (job.work / "checkpoint-00000072.safetensors").write_bytes(b"")
    (job.work / ".checkpoint-00000073.safetensors.1.tmp").write_bytes(data[:50])
    result = finish(job)
    assert 0 < result.resumed_at_step < 70
    assert not list(job.work.iterdir())
    (job.work / "checkpoint-00000005.safetensors").write_bytes(data)
    other = job.model_copy(update={"seed": 9, "result": job.result.with_name("other.json")})
    assert finish(other).resumed_at_step == 0


def test_a_checkpoint_of_other_rows_is_not_continued(tiny: Path, make_job: JobMaker) -> None:
    job = make_job(tiny, "rows", config=EVERY_STEP, epochs=40)
    process = start(job)
    wait_for(lambda: steps_done(job) >= 5, process)
    process.kill()
    process.wait()
    assert list(job.work.glob("checkpoint-*.safetensors"))
    job.rows.write_text("".join(job.rows.read_text(encoding="utf-8").splitlines(keepends=True)[:4]), encoding="utf-8")
    assert finish(job).resumed_at_step == 0


async def test_a_child_killed_once_is_started_again(tiny: Path, make_job: JobMaker) -> None:
    job = make_job(tiny, "retried", config=EVERY_STEP, epochs=40)
    killed: list[int] = []

    def kill_once(step: int, steps: int, loss: float) -> None:
        if step >= 3 and not killed:  # a step is told before its checkpoint is written
            for child in psutil.Process().children():
                if str(job.result.parent / "job.json") in child.cmdline():
                    killed.append(child.pid)
                    child.kill()

    result = await SubprocessTrainer(job.result.parent / "logs", kill_once).fit(job)
    assert killed
    assert result.resumed_at_step > 0


async def test_cancelling_ends_the_child(tiny: Path, make_job: JobMaker) -> None:
    job = make_job(tiny, "cancelled", epochs=100_000)
    started = asyncio.Event()
    trainer = SubprocessTrainer(job.result.parent / "logs", lambda *_: started.set())
    running = asyncio.create_task(trainer.fit(job))
    await asyncio.wait_for(started.wait(), 120)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    before = steps_done(job)
    await asyncio.sleep(0.5)
    assert steps_done(job) == before


def test_the_child_ends_when_its_parent_is_killed(tiny: Path, make_job: JobMaker) -> None:
    job = make_job(tiny, "orphan", epochs=100_000)
    script = """
import asyncio, pathlib, sys
from afdc.training import TrainJob
from afdc_server.trainer import SubprocessTrainer
path = pathlib.Path(sys.argv[1])
asyncio.run(SubprocessTrainer(path.parent / "logs").fit(TrainJob.model_validate_json(path.read_bytes())))
"""
    path = job.result.parent / "request.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    parent = subprocess.Popen([sys.executable, "-c", script, str(path)])
    wait_for(lambda: steps_done(job) >= 1, parent)
    parent.kill()
    parent.wait()
    time.sleep(0.5)
    before = steps_done(job)
    time.sleep(0.5)
    assert steps_done(job) == before


def test_two_processes_train_what_one_does(tiny: Path, make_job: JobMaker) -> None:
    alone = finish(make_job(tiny, "alone", config={"dropout": 0.0}))
    job = make_job(tiny, "pair", config={"dropout": 0.0})
    path = job.result.parent / "job.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    script = path.with_name("train.py")
    script.write_text(TRAIN_AND_LOOK, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**trainer_environment(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, str(script), str(path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    together = TrainResult.model_validate_json(job.result.read_bytes())
    assert together.losses == pytest.approx(alone.losses, rel=1e-4)
    assert together.adapter is not None

"""Two CPU processes train together, and one of them fails: the error of that one is told, and no consequence of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from afdc.errors import TrainerError
from afdc.training import TrainJob
from afdc_server.trainer import SubprocessTrainer
from afdc_trainer import launch
from afdc_trainer.launch import Failure, first_cause
from tests.trainer.conftest import JobMaker

HOOK = """
import os, signal, sys
def fail(event, args):
    if event == "open" and str(args[0]).endswith("rows.jsonl"):
        {body}
if os.environ.get("RANK") == "1":
    sys.addaudithook(fail)
"""


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFDC_TRAIN_PROCESSES", "2")


def break_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Have the second process run `body` when it opens its rows, as Python starts it."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK.format(body=body))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hook"))


def told(job: TrainJob) -> str:
    error = json.loads(job.result.read_bytes())["error"]
    assert isinstance(error, str)
    return error


def tell(tmp_path: Path, failures: dict[int, tuple[str, int, float]], codes: dict[int, int]) -> tuple[str, int]:
    """What is told of two processes: failures as (error, exit code, time) by rank, exit codes by rank."""
    files = [tmp_path / "0", tmp_path / "1"]
    for rank, (error, exit_code, at) in failures.items():
        files[rank].write_text(Failure(error=error, exit_code=exit_code, at=at).model_dump_json())
    error, code = first_cause(files, codes)
    return str(error), code


PEER_GONE = "RuntimeError: connection closed by peer"


@pytest.mark.parametrize(
    ("failures", "codes", "expected"),
    [
        ({0: (PEER_GONE, 1, 2.0), 1: ("bad row", 5, 1.0)}, {0: 1, 1: 5}, ("process 2 of 2: bad row", 5)),
        ({0: (PEER_GONE, 1, 1.0), 1: ("bad row", 5, 2.0)}, {0: 1, 1: 5}, ("process 2 of 2: bad row", 5)),
        ({0: (PEER_GONE, 1, 2.0), 1: ("KeyError: 3", 1, 1.0)}, {0: 1, 1: 1}, ("process 2 of 2: KeyError: 3", 1)),
        ({0: (PEER_GONE, 1, 2.0)}, {0: 1, 1: -11}, ("process 2 of 2 was killed by SIGSEGV", 139)),
        ({1: ("KeyError: 3", 1, 1.0)}, {0: -6, 1: 1}, ("process 2 of 2: KeyError: 3", 1)),
        ({}, {0: -6}, ("process 1 of 2 was killed by SIGABRT", 134)),
        ({}, {1: 3}, ("process 2 of 2 ended with exit code 3 and without a reason", 3)),
    ],
    ids=["first in time", "ours", "first of the unforeseen", "signal", "abort follows", "abort", "no reason"],
)
def test_the_cause_is_told_and_not_what_follows_from_it(
    tmp_path: Path, failures: dict[int, tuple[str, int, float]], codes: dict[int, int], expected: tuple[str, int]
) -> None:
    assert tell(tmp_path, failures, codes) == expected


@pytest.mark.parametrize("first", [0, 5], ids=["published", "failed"])
def test_nobody_waits_for_ever_once_the_first_process_has_ended(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    monkeypatch.setattr(launch, "GRACE_S", 0.3)
    bodies = (f"raise SystemExit({first})", "import time; time.sleep(60)")
    children = [subprocess.Popen([sys.executable, "-c", body]) for body in bodies]
    assert launch.wait_for(children) == {0: first}
    assert children[1].returncode == -signal.SIGKILL


@pytest.mark.trainer
async def test_a_number_of_processes_that_is_none_is_told(
    tiny: Path, make_job: JobMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFDC_TRAIN_PROCESSES", "many")
    with pytest.raises(TrainerError, match="AFDC_TRAIN_PROCESSES is 'many'"):
        await SubprocessTrainer(tmp_path / "logs").fit(make_job(tiny))


@pytest.mark.trainer
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            'raise OSError(5, "Input/output error")',
            r"process 2 of 2: .*rows\.jsonl: cannot be read: .*Input/output error",
        ),
        ('raise RuntimeError("the device is gone")', r"process 2 of 2: RuntimeError: the device is gone"),
    ],
)
async def test_the_error_of_the_process_that_failed_first_is_told(
    tiny: Path, make_job: JobMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: None, body: str, reason: str
) -> None:
    job = make_job(tiny)
    break_second(tmp_path, monkeypatch, body)
    with pytest.raises(TrainerError, match=rf"training job-r1 failed: {reason}.*The log is .*trainer-job-r1\.log"):
        await SubprocessTrainer(tmp_path / "logs").fit(job)
    assert told(job).startswith("process 2 of 2: ")
    assert not [child for child in psutil.Process().children(recursive=True) if "afdc_trainer" in child.cmdline()]


@pytest.mark.trainer
async def test_a_process_killed_once_is_no_failure_and_killed_again_is_named(
    tiny: Path, make_job: JobMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: None
) -> None:
    mark = tmp_path / "mark"
    once = f"not os.path.exists({str(mark)!r}) and (os.mkdir({str(mark)!r}), os.kill(os.getpid(), signal.SIGKILL))"
    break_second(tmp_path, monkeypatch, once)
    trainer = SubprocessTrainer(tmp_path / "logs")
    result = await trainer.fit(make_job(tiny))
    assert mark.exists()
    assert result.rows == 6
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK.format(body="os.kill(os.getpid(), signal.SIGKILL)"))
    with pytest.raises(TrainerError, match=r"failed 2 times: process 2 of 2 was killed by SIGKILL\. Memory has"):
        await trainer.fit(make_job(tiny, "again"))


@pytest.mark.trainer
async def test_a_retry_does_not_hide_why_the_first_try_ended(tiny: Path, make_job: JobMaker, tmp_path: Path) -> None:
    job = make_job(tiny, epochs=1000)

    def kill_and_spoil(step: int, steps: int, loss: float) -> None:
        if job.rows.read_text() != "no row\n":
            job.rows.write_text("no row\n")
            for child in psutil.Process().children():
                if str(job.result.parent / "job.json") in child.cmdline():
                    child.send_signal(signal.SIGSEGV)

    with pytest.raises(TrainerError, match=r"killed by SIGSEGV.* Started again it failed, too: .*not a training row"):
        await SubprocessTrainer(tmp_path / "logs", kill_and_spoil).fit(job)


@pytest.mark.trainer
async def test_two_processes_train_as_one_does_with_contrast_between_their_rows(
    tiny: Path, make_job: JobMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"dropout": 0.0, "contrastive": 1.0}
    alone = await SubprocessTrainer(tmp_path / "logs").fit(make_job(tiny, "alone", config=config))
    monkeypatch.setenv("AFDC_TRAIN_PROCESSES", "2")
    together = await SubprocessTrainer(tmp_path / "logs").fit(make_job(tiny, "together", config=config))
    assert together.losses == pytest.approx(alone.losses, abs=1e-4)
    assert alone.losses[0] > 0

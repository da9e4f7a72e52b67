"""A run of an open task that is killed at a durable step, and finished by the same command, has the same rows."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.open_job import make_open_job

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, kill_at: int) -> int:
    command = [sys.executable, "-m", "tests.fakes.open_job", str(folder), "--kill-at", str(kill_at)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode


@pytest.mark.parametrize("kill_at", [5, 23, 48, 77])
def test_killed_runs_end_with_the_rows_of_an_undisturbed_one(tmp_path: Path, kill_at: int) -> None:
    assert run(tmp_path / "cut", kill_at) == -signal.SIGKILL
    cut, whole = make_open_job(tmp_path / "cut"), make_open_job(tmp_path / "whole")
    assert json.dumps(cut.rows(cut.run())) == json.dumps(whole.rows(whole.run()))

"""kill -9 of the server at any durable step, started again: the results are those of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.service.cluster import database_url
from tests.service.faults import REPOSITORY, Outcome, examine

PROGRAM = (sys.executable, "-m", "tests.service.faults")
EVERY = {"sqlite": 23, "postgresql": 43}  # primes walk over all kinds of points; the slow tests take every one
KINDS = ("sqlite", "postgresql")


def run_all(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How each run ended."""
    sent = "".join(json.dumps(one) + "\n" for one in runs)
    done = subprocess.run(
        [*PROGRAM, "--each"], cwd=REPOSITORY, input=sent, capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Outcome]:
    """The number of durable steps of a whole run, and what it made."""
    root = tmp_path_factory.mktemp("undisturbed")
    done = subprocess.run([*PROGRAM, str(root)], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    outcome = examine(root)
    assert outcome.rows
    assert outcome.rejected
    return int(json.loads(done.stdout)["steps"]), outcome


def check_kills(folder: Path, kind: str, kills: Sequence[Sequence[int]], expected: Outcome) -> None:
    """Kill one server after the other, at these steps of its starts in turn, and compare what each leaves."""
    urls = [database_url(kind, folder) if kind == "postgresql" else "" for _ in kills]
    roots = [folder / str(number) for number in range(len(kills))]
    runs = [
        {"argv": [str(root), *(["--database-url", url] if url else [])], "kills": list(steps)}
        for root, url, steps in zip(roots, urls, kills, strict=True)
    ]
    ended = {one["argv"][0]: one for one in run_all(runs)}
    for root, url, steps in zip(roots, urls, kills, strict=True):
        assert ended[str(root)]["code"] == 0, f"killed at {steps}: {ended[str(root)]}"
        assert examine(root, url) == expected, f"killed at {steps}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_sampled_steps_changes_nothing(tmp_path: Path, kind: str, undisturbed: tuple[int, Outcome]) -> None:
    steps, expected = undisturbed
    check_kills(tmp_path, kind, [[step] for step in range(1, steps, EVERY[kind])], expected)


def test_kills_of_the_restarted_server_change_nothing_either(tmp_path: Path, undisturbed: tuple[int, Outcome]) -> None:
    steps, expected = undisturbed
    source = random.Random(5)
    kills = [sorted(source.sample(range(10, steps // 2), 3)) for _ in range(3)]
    check_kills(tmp_path, "sqlite", kills, expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_every_step_changes_nothing(tmp_path: Path, kind: str, undisturbed: tuple[int, Outcome]) -> None:
    steps, expected = undisturbed
    check_kills(tmp_path, kind, [[step] for step in range(1, steps + 1)], expected)


@pytest.mark.slow
def test_many_kills_of_one_job_change_nothing(tmp_path: Path, undisturbed: tuple[int, Outcome]) -> None:
    steps, expected = undisturbed
    source = random.Random(6)
    kills = [[source.randrange(1, steps) for _ in range(source.randint(2, 9))] for _ in range(40)]
    check_kills(tmp_path, "sqlite", kills, expected)

"""kill -9 of the server at any durable step, started again: the results are those of an undisturbed run."""

from __future__ import annotations

import itertools
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
EVERY = {"sqlite": 23, "postgresql": 41}  # primes walk over all kinds of points; the slow tests take every one
SLACK = 12  # by so many steps runs differ, as threads take turns: a point nearer to the end may never come
KINDS = ("sqlite", "postgresql")


def run_all(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How each run ended."""
    sent = "".join(json.dumps(one) + "\n" for one in runs)
    done = subprocess.run(
        [*PROGRAM, "--each"], cwd=REPOSITORY, input=sent, capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def run_undisturbed(root: Path, kind: str = "sqlite") -> tuple[int, Outcome]:
    """The number of durable steps of a whole run, and what it made."""
    url = database_url(kind, root) if kind == "postgresql" else ""
    command = [*PROGRAM, str(root), *(["--database-url", url] if url else [])]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    outcome = examine(root, url)
    assert outcome.rows
    assert outcome.rejected
    return int(json.loads(done.stdout)["steps"]), outcome


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Outcome]:
    return run_undisturbed(tmp_path_factory.mktemp("undisturbed"))


def check_kills(folder: Path, kind: str, kills: Sequence[Sequence[int]], expected: Outcome, certain: int) -> None:
    """Kill one server after the other, at these steps of its starts in turn, and compare what each leaves.

    Args:
        certain: steps that every run has. Those of the starts add up: kills below it in all must come to pass.
    """
    urls = [database_url(kind, folder) if kind == "postgresql" else "" for _ in kills]
    roots = [folder / str(number) for number in range(len(kills))]
    runs = [
        {"argv": [str(root), *(["--database-url", url] if url else [])], "kills": list(steps)}
        for root, url, steps in zip(roots, urls, kills, strict=True)
    ]
    ended = {one["argv"][0]: one for one in run_all(runs)}
    for root, url, steps in zip(roots, urls, kills, strict=True):
        code, left = (ended[str(root)][name] for name in ("code", "left"))
        assert code == 0, f"killed at {steps}: {ended[str(root)]}"
        assert not left or sum(steps) > certain, f"killed at {steps}: {left} never came"
        assert examine(root, url) == expected, f"killed at {steps}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_sampled_steps_changes_nothing(tmp_path: Path, kind: str, undisturbed: tuple[int, Outcome]) -> None:
    steps, expected = undisturbed
    certain = steps - SLACK
    check_kills(tmp_path, kind, [[step] for step in range(1, certain, EVERY[kind])], expected, certain)


def test_kills_of_the_restarted_server_change_nothing_either(tmp_path: Path, undisturbed: tuple[int, Outcome]) -> None:
    steps, expected = undisturbed
    source, certain = random.Random(5), steps - SLACK
    kills = [sorted(source.sample(range(10, certain // 3), 3)) for _ in range(3)]
    check_kills(tmp_path, "sqlite", kills, expected, certain)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_every_step_changes_nothing(tmp_path: Path, kind: str, undisturbed: tuple[int, Outcome]) -> None:
    _, expected = undisturbed
    root = tmp_path / "undisturbed"
    root.mkdir()
    steps, _ = run_undisturbed(root, kind)  # of this kind of database
    check_kills(tmp_path, kind, [[step] for step in range(1, steps + 1)], expected, steps - SLACK)


@pytest.mark.slow
def test_many_kills_of_one_job_change_nothing(tmp_path: Path, undisturbed: tuple[int, Outcome]) -> None:
    steps, expected = undisturbed
    source, certain = random.Random(6), steps - SLACK
    kills = [shares(source, certain, source.randint(2, 9)) for _ in range(40)]
    check_kills(tmp_path, "sqlite", kills, expected, certain)


def shares(source: random.Random, total: int, count: int) -> list[int]:
    """So many whole numbers from 1 on that add up to less than `total`."""
    cuts = sorted(source.sample(range(1, total), count))
    return [after - before for before, after in itertools.pairwise([0, *cuts])]

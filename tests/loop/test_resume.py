"""kill -9 at a durable step, run again: the rows are those of an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from afdc.adapter import AdapterManifest
from afdc.config import RunConfig
from afdc.errors import AdapterError, ConflictError
from afdc_pipeline.state import LoopState
from tests.fakes.engine import FakeEngine
from tests.fakes.job import folded_config, growing_config, make_job, small_config

REPOSITORY = Path(__file__).resolve().parents[2]
TARGET = 150
GROW = ("--target-rows", str(TARGET))
FOLD = ("--folds", "2")
EVERY = 29  # a prime step walks over all kinds of points; the slow test takes every one


def run_child(root: Path, kill_at: int = 0, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fakes.job", str(root), "--kill-at", str(kill_at), *more]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=dict(os.environ))


def whole_run(root: Path, config: RunConfig | None = None, *more: str) -> tuple[int, object, LoopState]:
    """The number of durable steps of a run that nobody disturbs, its rows, and where it ended."""
    child = run_child(root, 0, *more)
    assert child.returncode == 0, child.stderr
    job = make_job(root, config)
    state = job.run()
    return int(child.stdout), job.rows(state), state


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, object]:
    """The number of durable steps of a whole run, and its rows."""
    return whole_run(tmp_path_factory.mktemp("undisturbed"))[:2]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, object]:
    """The same of a job that draws further augment rounds for its target."""
    steps, rows, state = whole_run(tmp_path_factory.mktemp("grown"), growing_config(TARGET), *GROW)
    assert "further augment rounds" in state.history[0].note
    return steps, rows


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, object]:
    """The same of a job whose folds decide for themselves."""
    return whole_run(tmp_path_factory.mktemp("folded"), folded_config(2), *FOLD)[:2]


def check_all(
    tmp_path: Path, undisturbed: tuple[int, object], points: list[int], config: RunConfig | None = None, *more: str
) -> None:
    _, expected = undisturbed
    with ThreadPoolExecutor(2) as pool:
        children = list(pool.map(lambda n: run_child(tmp_path / str(n), n, *more), points))
    assert {child.returncode for child in children} == {-signal.SIGKILL}
    for number in points:
        job = make_job(tmp_path / str(number), config)
        assert job.rows(job.run()) == expected, f"killed at step {number}"


def test_a_kill_at_sampled_steps_changes_no_row(tmp_path: Path, undisturbed: tuple[int, object]) -> None:
    steps, _ = undisturbed
    check_all(tmp_path, undisturbed, list(range(1, steps + 1, EVERY)))


def test_a_kill_while_the_target_is_drawn_for_changes_no_row(tmp_path: Path, grown: tuple[int, object]) -> None:
    check_all(tmp_path, grown, list(range(1, grown[0] + 1, EVERY)), growing_config(TARGET), *GROW)


def test_a_kill_while_the_folds_decide_changes_no_row(tmp_path: Path, folded: tuple[int, object]) -> None:
    check_all(tmp_path, folded, list(range(1, folded[0] + 1, 3 * EVERY)), folded_config(2), *FOLD)


@pytest.mark.slow
def test_a_kill_at_every_step_of_growth_changes_no_row(tmp_path: Path, grown: tuple[int, object]) -> None:
    check_all(tmp_path, grown, list(range(1, grown[0] + 1)), growing_config(TARGET), *GROW)


@pytest.mark.slow
def test_a_kill_at_every_step_changes_no_row(tmp_path: Path, undisturbed: tuple[int, object]) -> None:
    steps, _ = undisturbed
    check_all(tmp_path, undisturbed, list(range(1, steps + 1)))


def test_a_finished_job_asks_the_engine_nothing(tmp_path: Path) -> None:
    first = make_job(tmp_path)
    rows = first.rows(first.run())
    again = make_job(tmp_path)
    assert again.rows(again.run()) == rows
    assert not [call for call in again.engine.calls if not call.startswith("load:")]
    assert not again.trainer.jobs


def test_a_budget_stops_a_resumed_run_where_it_stopped_before(tmp_path: Path) -> None:
    free = make_job(tmp_path / "free")
    free.run()
    usage = free.engine.usage()
    half = (usage.prompt_tokens + usage.completion_tokens) * 2 // 3
    config = small_config(loop={"rounds": 2, "members": 2, "token_budget": half})
    first = make_job(tmp_path / "tight", config).run()
    assert "token_budget" in first.stop_reason
    again = make_job(tmp_path / "tight", config).run()
    assert (again.stop_reason, len(again.history)) == (first.stop_reason, len(first.history))
    assert again.best == first.best


def test_a_refused_adapter_stays_refused(tmp_path: Path) -> None:
    class Refusing(FakeEngine):
        async def load_adapter(self, folder: Path) -> AdapterManifest:
            if "-r2-" in folder.name:
                raise AdapterError("probe failed")
            return await super().load_adapter(folder)

    first = make_job(tmp_path, engine=Refusing()).run()
    again = make_job(tmp_path).run()
    assert "probe failed" in again.stop_reason
    assert (again.best, len(again.history)) == (first.best, len(first.history))


def test_a_first_labeller_that_was_refused_is_tried_again(tmp_path: Path) -> None:
    class Refusing(FakeEngine):
        async def load_adapter(self, folder: Path) -> AdapterManifest:
            raise AdapterError("the disk did not answer")

    with pytest.raises(AdapterError, match="did not answer"):
        make_job(tmp_path / "one", engine=Refusing()).run()
    again, plain = make_job(tmp_path / "one"), make_job(tmp_path / "other")
    assert again.rows(again.run()) == plain.rows(plain.run())
    assert [job.name for job in again.trainer.jobs if job.round == 0] == ["job-test-m1"], "m0 was trained already"


def test_chunks_of_another_device_are_not_mixed_in(tmp_path: Path) -> None:
    run_child(tmp_path, 40)
    job = make_job(tmp_path)
    job.ctx.info = replace(job.ctx.info, device="cuda")
    with pytest.raises(ConflictError, match="other inputs"):
        job.run()

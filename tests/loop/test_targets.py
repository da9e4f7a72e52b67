"""What a row of D2 is trained on: what its labellers believe of it, or its label alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afdc.errors import UsageError
from afdc.presets import build_config
from afdc.training import TrainRow
from afdc_pipeline.learning import MIN_SHARE, learns_from_all, soft_targets
from afdc_pipeline.pool import Pool
from afdc_pipeline.seams import StageKey
from afdc_pipeline.stages.decide import decided_rows
from afdc_server.local.request import check_settings
from tests.fakes.engine import FakeEngine
from tests.fakes.job import TASK, FakeJob, make_job, make_seeds, small_config

Rows = dict[str, TrainRow]


def taught(tmp_path: Path, soft: bool, all_rows: bool | None = None, **sections: Any) -> tuple[FakeJob, Rows]:
    """A job of one round, and the rows by text that r1 learnt from and that are no seeds."""
    settings = {"select": {"soft_targets": soft}, "train": {"all_rows": all_rows}, "loop": {"rounds": 1}}
    job = make_job(tmp_path, small_config(**{**settings, **sections}), engine=FakeEngine(noise=0.5))
    job.run()
    fit = next(one for one in job.trainer.jobs if one.name == "job-test-r1")
    rows = [TrainRow.model_validate_json(line) for line in fit.rows.read_text().splitlines()]
    return job, {row.text: row for row in rows if not row.gold}


def decided(job: FakeJob) -> dict[str, dict[str, Any]]:
    """Decisions of round 0 by text."""
    pool = Pool(job.ctx.ledger, job.ctx.store, [StageKey(number, "filter") for number in (1, 2)])
    rows = decided_rows(job.ctx, pool, StageKey(0, "select"))
    return {candidate.text: row for candidate, row in rows}


def test_rows_are_trained_on_what_their_labellers_believe(tmp_path: Path) -> None:
    _, soft = taught(tmp_path / "soft", soft=True, all_rows=False)
    _, hard = taught(tmp_path / "hard", soft=False)
    assert soft.keys() == hard.keys()
    assert all(row.targets == {max(soft[text].targets, key=soft[text].targets.get): 1.0} for text, row in hard.items())
    assert any(len(row.targets) > 1 for row in soft.values())
    assert all(sum(row.targets.values()) == pytest.approx(1, abs=3 * MIN_SHARE) for row in soft.values())


def test_every_scored_row_is_learnt_from_also_what_the_data_set_leaves_out(tmp_path: Path) -> None:
    job, rows = taught(tmp_path, soft=True)
    decisions = decided(job)
    assert rows.keys() == {text for text, row in decisions.items() if row["distribution"]}
    assert any(not decisions[text]["keep"] for text in rows)
    assert {row.weight for row in rows.values()} == {1.0}


@pytest.mark.parametrize(
    ("soft", "all_rows", "labeller"), [(True, False, True), (True, None, False), (False, True, True)]
)
def test_else_the_rows_of_d2_alone_are(tmp_path: Path, soft: bool, all_rows: bool | None, labeller: bool) -> None:
    job, rows = taught(tmp_path, soft, all_rows, encoder={"labeller": labeller})
    assert rows.keys() == {text for text, row in decided(job).items() if row["keep"]}


def test_an_encoder_learns_labels_of_d2_alone(tmp_path: Path) -> None:
    job, _ = taught(tmp_path, soft=True)
    seen = job.encoder.jobs["job-test-e1"][0]
    kept = {text for text, row in decided(job).items() if row["keep"]}
    assert seen.rows == kept | {seed.text for seed in make_seeds()} | set(TASK.names)


def test_weighted_rows_weigh_their_confidence(tmp_path: Path) -> None:
    job, rows = taught(tmp_path, soft=True, select={"weighted": True})
    decisions = decided(job)
    assert all(row.weight == pytest.approx(decisions[text]["confidence"]) for text, row in rows.items())


def test_rows_of_doubt_with_sure_labels_are_refused() -> None:
    check_settings(build_config("default", {"train": {"all_rows": True}, "select": {"soft_targets": True}}))
    with pytest.raises(UsageError, match="needs select"):
        check_settings(build_config("default", {"train": {"all_rows": True}}))


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_presets_train_on_the_labels_of_d2(preset: str) -> None:
    config = build_config(preset)
    assert not config.select.soft_targets
    assert not learns_from_all(config, TASK)


@given(st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=80))
def test_a_soft_target_keeps_the_label_and_nothing_that_does_not_count(weights: list[float]) -> None:
    distribution = [weight / sum(weights) for weight in weights]
    targets = soft_targets(distribution)
    assert max(targets, key=lambda label: targets[label]) == distribution.index(max(distribution))
    assert all(targets[label] == distribution[label] for label in targets)
    assert sum(distribution) - sum(targets.values()) <= MIN_SHARE * len(distribution)

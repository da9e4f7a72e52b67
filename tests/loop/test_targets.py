"""What a row of D2 is trained on: what its labellers believe of it, or its label alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afdc.presets import build_config
from afdc.training import TrainRow
from afdc_pipeline.outcome import kept_rows
from afdc_pipeline.stages.fit import MIN_SHARE, soft_targets
from tests.fakes.engine import FakeEngine
from tests.fakes.job import make_job, small_config


def trained_rows(tmp_path: Path, soft: bool) -> tuple[dict[str, TrainRow], dict[str, list[float]]]:
    """Rows that r1 learnt from and that are no seeds, and the distributions of the data set, by text."""
    config = small_config(select={"soft_targets": soft, "trust": False}, loop={"rounds": 1})
    job = make_job(tmp_path, config, engine=FakeEngine(noise=0.5))
    state = job.run()
    fit = next(one for one in job.trainer.jobs if one.name == "job-test-r1")
    rows = [TrainRow.model_validate_json(line) for line in fit.rows.read_text().splitlines()]
    kept = {row["text"]: row["distribution"] for row in kept_rows(job.ctx, state) if row["source"] == "generated"}
    return {row.text: row for row in rows if not row.gold}, kept


def test_rows_are_trained_on_what_their_labellers_believe(tmp_path: Path) -> None:
    soft, _ = trained_rows(tmp_path / "soft", soft=True)
    hard, _ = trained_rows(tmp_path / "hard", soft=False)
    assert soft.keys() == hard.keys()
    assert all(row.targets == {max(soft[text].targets, key=soft[text].targets.get): 1.0} for text, row in hard.items())
    assert any(len(row.targets) > 1 for row in soft.values())
    assert all(sum(row.targets.values()) == pytest.approx(1, abs=3 * MIN_SHARE) for row in soft.values())


def test_the_paper_trains_on_labels() -> None:
    assert build_config().select.soft_targets
    assert not build_config("paper").select.soft_targets


@given(st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=80))
def test_a_soft_target_keeps_the_label_and_nothing_that_does_not_count(weights: list[float]) -> None:
    distribution = [weight / sum(weights) for weight in weights]
    targets = soft_targets(distribution)
    assert max(targets, key=lambda label: targets[label]) == distribution.index(max(distribution))
    assert all(targets[label] == distribution[label] for label in targets)
    assert sum(distribution) - sum(targets.values()) <= MIN_SHARE * len(distribution)

"""The loop on an open task, with the fake engine and trainer: answers, selection, rows, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afdc.training import TrainRow
from afdc_pipeline.answers import exact_match
from afdc_pipeline.state import LoopState
from tests.fakes.engine import FakeEngine
from tests.fakes.job import FakeJob
from tests.fakes.open_job import make_open_job, open_config, open_gold, open_seeds


class StoppedError(Exception):
    """Stands for a kill at a call of the engine."""


def stop_at(number: int) -> FakeEngine:
    """An engine that ends the run at its n-th call."""
    left = [number]

    def on_call(_what: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise StoppedError

    return FakeEngine(on_call=on_call)


def finished(job: FakeJob) -> tuple[LoopState, list[dict[str, Any]], list[dict[str, Any]]]:
    state = job.run()
    return state, *job.rows(state)


def test_a_job_ends_with_answers_and_two_adapters(tmp_path: Path) -> None:
    job = make_open_job(tmp_path, open_config(answer={"min_agreement": 0.9}), eval=open_gold())
    state, kept, _ = finished(job)
    assert [one.round for one in state.history] == [0, 1, 2]
    generated = [row for row in kept if row["source"] == "generated"]
    assert len(generated) == state.history[-1].selected > 0
    assert all(row["label"] and row["agreement"] >= 0.9 and 0 < row["confidence"] <= 1 for row in generated)
    assert any("samples_disagree" in one.reasons for one in state.decisions)
    right = [exact_match(row["label"], max(row["text"].split(), key=len)) for row in generated]
    assert sum(right) / len(right) > 0.8


def test_the_score_before_and_after_is_exact_match_and_token_f1(tmp_path: Path) -> None:
    state = make_open_job(tmp_path, eval=open_gold()).run()
    assert state.eval.n == 6
    assert state.eval.token_f1 is not None
    assert state.eval.final == pytest.approx(1.0, abs=0.34)
    assert state.eval.token_f1.final is not None
    assert state.history[1].eval is not None
    assert state.history[1].eval.macro_f1 is None
    assert 0 <= (state.history[1].flip_rate or 0) < 1
    assert 0 < (state.history[1].agreement or 0) <= 1


def test_rows_are_trained_on_their_answers(tmp_path: Path) -> None:
    job = make_open_job(tmp_path)
    state = job.run()
    lines = (tmp_path / "state" / "rounds" / "r1" / "rows.jsonl").read_text().splitlines()
    rows = [TrainRow.model_validate_json(line) for line in lines]
    assert [row.completion for row in rows if row.gold] == [seed.label for seed in open_seeds()]
    assert all(row.completion and not row.targets for row in rows)
    assert len(rows) == len(open_seeds()) + state.history[0].selected
    assert job.trainer.jobs[0].task.is_open


@pytest.mark.parametrize("call", [3, 9, 20, 45, 70, 120])
def test_a_job_that_was_stopped_ends_with_the_same_rows(tmp_path: Path, call: int) -> None:
    whole = finished(make_open_job(tmp_path / "whole", eval=open_gold()))
    with pytest.raises(StoppedError):
        make_open_job(tmp_path / "cut", engine=stop_at(call), eval=open_gold()).run()
    again = finished(make_open_job(tmp_path / "cut", eval=open_gold()))
    assert json.dumps(again[1:]) == json.dumps(whole[1:])
    assert again[0].eval == whole[0].eval


def test_a_finished_job_asks_nothing_again(tmp_path: Path) -> None:
    make_open_job(tmp_path).run()
    again = make_open_job(tmp_path)
    again.run()
    assert not [call for call in again.engine.calls if call.startswith(("answer", "generate"))]


def test_held_out_seeds_gate_by_token_f1(tmp_path: Path) -> None:
    job = make_open_job(tmp_path, seeds=open_seeds(8, holdout=2))
    state = job.run()
    assert all(one.holdout is not None and one.holdout.n == 2 for one in state.history)
    assert state.history[0].holdout is not None
    assert state.history[0].holdout.score == state.history[0].holdout.token_f1


def test_a_poisoned_text_is_rejected_with_its_reason(tmp_path: Path) -> None:
    texts = ["a POISON note of some length", "an ordinary note about gardeners"]
    job = make_open_job(tmp_path, unlabeled=lambda: iter(texts), unlabeled_digest="x")
    _, _, rejected = finished(job)
    [row] = [row for row in rejected if "POISON" in row["text"]]
    assert (row["reason"], row["detail"], row["label"]) == ("engine_rejected", "poisoned", None)


def test_the_base_model_answers_first_in_the_paper_preset(tmp_path: Path) -> None:
    config = open_config("paper", loop={"members": 0, "rounds": 1, "ensemble": False}, select={"threshold": 0.3})
    job = make_open_job(tmp_path, config)
    state, kept, _ = finished(job)
    assert state.history[0].adapter == ""
    assert all(row["confidence"] > 0.3 for row in kept)
    assert state.decisions[0].reasons["below_threshold"] > 0
    assert not any("samples_disagree" in one.reasons for one in state.decisions)


@pytest.mark.parametrize("strategy", ["confidence", "least_confidence", "margin", "entropy", "committee", "diversity"])
def test_every_strategy_keeps_the_target(tmp_path: Path, strategy: str) -> None:
    config = open_config(
        loop={"rounds": 1, "members": 2}, select={"strategy": strategy, "target_rows": 5}, answer={"samples": 2}
    )
    assert make_open_job(tmp_path, config).run().history[-1].selected == 5


def test_a_target_draws_further_rounds(tmp_path: Path) -> None:
    config = open_config(select={"target_rows": 40}, loop={"rounds": 1, "members": 2})
    state, kept, _ = finished(make_open_job(tmp_path, config))
    assert state.extra >= 1
    assert sum(row["source"] == "generated" for row in kept) == state.history[-1].selected


def test_variants_are_asked_for_without_a_label(tmp_path: Path) -> None:
    _, kept, _ = finished(make_open_job(tmp_path))
    assert {row["intended"] for row in kept if row["source"] == "generated"} == {None}

"""Adapters that leave a fold of the seeds out: what they are trained on, what they gate, calibrate and label."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from afdc.task import Task
from afdc.training import TrainJob
from afdc_pipeline import calibration, scoring
from afdc_pipeline.seams import Scores, StageKey
from tests.fakes.engine import WORDS, FakeEngine, stable_rng
from tests.fakes.job import TASK, FakeJob, make_job, make_seeds, small_config
from tests.loop.losing import Losing, named_seeds

FOLDED = {"rounds": 1, "members": 2, "folds": 2}


def texts(job: TrainJob) -> list[str]:
    return [json.loads(line)["text"] for line in job.rows.read_text().splitlines()]


def fits(job: FakeJob) -> dict[str, TrainJob]:
    return {fit.name.removeprefix("job-test-"): fit for fit in job.trainer.jobs}


def test_every_seed_is_left_out_once_in_every_round(tmp_path: Path) -> None:
    job = make_job(tmp_path, small_config(loop=FOLDED))
    job.run()
    assert sorted(fits(job)) == ["m-f0", "m-f1", "m0", "m1", "r1", "r1-f0", "r1-f1"]
    seeds = {seed.text for seed in make_seeds()}
    for short in ("m", "r1"):
        left_out = [seeds - set(texts(fits(job)[f"{short}-f{fold}"])) for fold in (0, 1)]
        assert left_out[0] | left_out[1] == seeds
        assert not left_out[0] & left_out[1]
    assert len({fit.seed for fit in job.trainer.jobs}) == 7


def test_texts_written_from_a_left_out_seed_are_left_out_too(tmp_path: Path) -> None:
    job = make_job(tmp_path, small_config(loop=FOLDED))
    state = job.run()
    parent = {row["text"]: row["parent"] for rows in job.rows(state) for row in rows if row["parent"]}
    seeds = {seed.id: seed.text for seed in make_seeds()}
    for fold in (0, 1):
        rows = texts(fits(job)[f"r1-f{fold}"])
        held = {identity for identity, text in seeds.items() if text not in rows}
        assert held
        assert not {parent[text] for text in rows if text in parent} & held


def test_a_round_that_loses_out_of_fold_is_not_handed_out(tmp_path: Path) -> None:
    state = make_job(tmp_path, small_config(loop=FOLDED), engine=Losing("-r1-f", noise=0.1), seeds=named_seeds()).run()
    first, second = state.history
    assert first.holdout is not None
    assert second.holdout is not None
    assert first.holdout.n == second.holdout.n == len(make_seeds())
    assert second.holdout.accuracy < first.holdout.accuracy
    assert second.activated is False
    assert "-m0-" in state.best.served


@pytest.mark.parametrize(("least", "rounds", "reason"), [(0.1, 1, "flip_rate: 0.00%"), (0.0, 3, "rounds")])
def test_no_round_follows_a_refused_one_unless_rounds_go_on_whatever_flips(
    tmp_path: Path, least: float, rounds: int, reason: str
) -> None:
    config = small_config(loop={**FOLDED, "rounds": 3, "patience": 9, "min_flip_rate": least})
    engine = Losing("-r1-f", noise=0.1)
    state = make_job(tmp_path, config, engine=engine, seeds=named_seeds()).run()
    assert state.history[1].activated is False
    assert state.history[-1].round == rounds
    assert state.stop_reason.startswith(reason)


def test_a_round_that_loses_by_one_answer_is_handed_out_and_says_so(tmp_path: Path) -> None:
    engine = Losing("-r1-f", noise=0.1, lost=1)
    state = make_job(tmp_path, small_config(loop=FOLDED), engine=engine, seeds=named_seeds()).run()
    first, second = (one.holdout for one in state.history)
    assert first is not None
    assert second is not None
    assert (first.accuracy, second.accuracy) == (1.0, 11 / 12)
    assert second.log_loss > first.log_loss
    assert "-r1-" in state.best.served
    assert state.history[-1].note.startswith("behind on held-out gold (100.0% of held-out gold, log loss 0.0")


def test_the_temperature_of_a_round_is_fitted_on_what_was_left_out(tmp_path: Path) -> None:
    noisy = make_job(tmp_path / "noisy", small_config(loop=FOLDED), engine=FakeEngine(noise=4.0))
    noisy.run()
    clear = make_job(tmp_path / "clear", small_config(loop=FOLDED), engine=FakeEngine(noise=0.1), seeds=named_seeds())
    clear.run()
    assert fits(noisy)["m-f0"].temperature == 1.0
    assert fits(noisy)["m0"].temperature == fits(noisy)["m1"].temperature
    assert fits(noisy)["r1"].temperature > 1.0 > fits(clear)["m0"].temperature
    assert fits(noisy)["r1"].temperature > fits(clear)["r1"].temperature


@pytest.mark.parametrize(("count", "enough"), [(150, True), (60, False)])
def test_the_users_own_texts_tell_how_sure_to_be_where_there_are_enough(
    tmp_path: Path, count: int, enough: bool
) -> None:
    told = ("", *TASK.names)  # a quarter is anyone's guess
    texts = [f"{' '.join(stable_rng('real', n).choice(WORDS, size=6))} {n} {told[n % 4]}" for n in range(count)]
    real = {"unlabeled": lambda: iter(texts), "unlabeled_digest": "real"}
    job = make_job(tmp_path, small_config(loop=FOLDED), engine=FakeEngine(noise=2.0), **real)
    job.run()
    ledger, store = job.ctx.ledger, job.ctx.store
    decided = {record.index: store.get(record.ref) for record in ledger.chunks(StageKey(0, "select"))}
    chunk = max(decided)  # the user's texts come last
    logprobs, labels = [], []
    for fold in (0, 1):
        scored = {record.index: record.ref for record in ledger.chunks(StageKey(1, f"score-r1-f{fold}"))}
        for said, one in zip(store.get(scored[chunk]), decided[chunk], strict=True):
            if said["logprobs"]:
                logprobs.append(said["logprobs"])
                labels.append(one["label"])
    assert len(labels) == count
    agreed = calibration.agreement(scoring.labels(np.array(logprobs)), np.array(labels, dtype=np.int32))
    probs = scoring.normalise(np.array(logprobs) / fits(job)["r1"].temperature)
    assert bool(abs(scoring.confidence(probs).mean() - agreed) < 1e-6) is enough


def test_without_folds_or_with_held_out_seeds_nothing_is_left_out(tmp_path: Path) -> None:
    none = make_job(tmp_path / "none", small_config(loop={**FOLDED, "folds": 0}))
    held = make_job(tmp_path / "held", small_config(loop=FOLDED), seeds=make_seeds(holdout=1))
    for job in (none, held):
        job.run()
        assert sorted(fits(job)) == ["m0", "m1", "r1"]


def test_a_resumed_job_trains_no_fold_again_and_ends_the_same(tmp_path: Path) -> None:
    first = make_job(tmp_path, small_config(loop=FOLDED))
    kept, _ = first.rows(first.run())
    again = make_job(tmp_path, small_config(loop=FOLDED))
    assert again.rows(again.run())[0] == kept
    assert not again.trainer.jobs


class Confirming(FakeEngine):
    """An adapter of round 1 is sure of label 0 whatever it reads."""

    async def score(self, texts: Sequence[str], task: Task, adapter: str | None = None) -> Scores:
        scores = await super().score(texts, task, adapter)
        if adapter and "-r1-" in adapter:
            sure = np.tile([0.0, -50.0, -50.0], (len(texts), 1))
            return Scores(np.where(np.isnan(scores.logprobs), np.nan, sure), scores.errors)
        return scores


@pytest.mark.parametrize("out_of_sample", [True, False])
def test_an_adapter_has_no_say_on_rows_that_it_was_trained_on(tmp_path: Path, out_of_sample: bool) -> None:
    config = small_config(
        loop={"rounds": 1, "members": 1, "folds": 0},
        encoder={"labeller": False},
        select={"out_of_sample": out_of_sample, "agreement": False, "balance": False, "threshold": 0.9},
    )
    job = make_job(tmp_path, config, engine=Confirming(noise=2.0))
    state = job.run()
    rows = [row for part in job.rows(state) for row in part if row["source"] == "generated" and row["label_history"]]
    trained = set(texts(fits(job)["r1"]))
    own = [row for row in rows if row["text"] in trained]
    others = [row for row in rows if row["text"] not in trained]
    assert own
    assert others
    assert all(row["distribution"][0] > 1 / 3 for row in others)
    unchanged = [row["label_history"][0] == row["label_history"][1] for row in own]
    assert all(unchanged) == out_of_sample


def test_the_data_set_leaves_out_what_the_labellers_get_wrong_elsewhere(tmp_path: Path) -> None:
    engine = {"engine": FakeEngine(noise=2.0)}
    trusted = make_job(tmp_path / "t", small_config(loop=FOLDED, select={"precision": 0}), **engine)
    state = trusted.run()
    kept, rejected = trusted.rows(state)
    all_of_them = make_job(tmp_path / "a", small_config(loop=FOLDED, select={"trust": False}), **engine)
    every, _ = all_of_them.rows(all_of_them.run())
    doubtful = [row for row in rejected if row["reason"] == "not_trusted"]
    assert doubtful
    assert state.best_holdout is not None
    left = [row for row in kept if row["source"] == "generated"]
    assert len(left) < len([row for row in every if row["source"] == "generated"])
    assert min(row["confidence"] for row in left) > 0
    assert state.history[-1].selected == len(left)


def test_a_target_is_not_cut(tmp_path: Path) -> None:
    state = make_job(tmp_path, small_config(loop=FOLDED, select={"target_rows": 9})).run()
    assert state.history[-1].selected == 9


@pytest.mark.parametrize("soft", [True, False])
def test_real_texts_have_a_temperature_of_their_own(tmp_path: Path, soft: bool) -> None:
    config = small_config(loop=FOLDED, select={"soft_targets": soft})
    job = make_job(tmp_path, config, engine=FakeEngine(noise=0.5), seeds=named_seeds())
    state = job.run()
    labelling = {one.temperature for one in state.labellers if one.name.startswith("r1-f")}
    assert labelling
    assert fits(job)["r1"].temperature not in labelling
    if soft:
        assert 0.3 < fits(job)["r1"].temperature < 3.0  # near 1, with seeds that are all told right


def test_an_adapter_is_as_sure_as_its_folds_agree_with_the_committee(tmp_path: Path) -> None:
    clear, vague = (
        make_job(tmp_path / str(noise), small_config(loop=FOLDED), engine=FakeEngine(noise=noise), seeds=named_seeds())
        for noise in (0.5, 3.0)
    )
    for job in (clear, vague):
        job.run()
    assert fits(vague)["r1"].temperature > fits(clear)["r1"].temperature

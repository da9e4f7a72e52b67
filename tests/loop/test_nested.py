"""Every fold decides for itself what it learns: its labellers never learnt the seeds that it leaves out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from afdc.task import Task
from afdc_pipeline.rows import Candidate
from afdc_pipeline.seams import Scores, StageKey
from afdc_pipeline.stages.crossfit import seed_folds
from afdc_pipeline.state import LoopState
from tests.fakes.encoder import FakeEncoder
from tests.fakes.engine import FakeEngine
from tests.fakes.job import TASK, FakeJob, growing_config, make_job, make_seeds, small_config
from tests.fakes.open_job import make_open_job, open_config
from tests.loop.losing import Refusing, named_seeds

FOLDED = {"rounds": 1, "members": 2, "folds": 2}
ALONE = {"labeller": False}


class Opinionated(FakeEngine):
    """Adapters of all seeds take every text for label 0, those that leave a fold out for label 1."""

    async def score(self, texts: Sequence[str], task: Task, adapter: str | None = None) -> Scores:
        scores = await super().score(texts, task, adapter)
        likes = [-9.0, -0.1, -9.0] if adapter and re.search(r"-f\d-", adapter) else [-0.1, -9.0, -9.0]
        return Scores(np.where(np.isnan(scores.logprobs), np.nan, likes), scores.errors)


class Agreeable(FakeEncoder):
    """Takes every text for label 1."""

    def _score(self, text: str, learnt: str, seed: int) -> np.ndarray:  # type: ignore[type-arg] # of float
        return np.log(np.array([0.2, 0.6, 0.2]))


def labels(job: FakeJob, short: str) -> Counter[int]:
    """Labels of the rows that an adapter learnt beside the seeds."""
    fit = next(fit for fit in job.trainer.jobs if fit.name.removeprefix("job-test-") == short)
    rows = [json.loads(line) for line in fit.rows.read_text().splitlines()]
    return Counter(int(label) for row in rows if not row["gold"] for label in row["targets"])


def candidates(state: LoopState) -> list[Candidate]:
    return [one for chunk in state.pool.chunks() for one in state.pool.read(chunk)]


def asked(job: FakeJob, state: LoopState, round: int, stage: str) -> dict[str, bool]:
    """Candidate id -> whether that labeller was asked about it."""
    rows = [row for record in job.ctx.ledger.chunks(StageKey(round, stage)) for row in job.ctx.store.get(record.ref)]
    return {one.id: bool(row["logprobs"]) for one, row in zip(candidates(state), rows, strict=True)}


@pytest.mark.parametrize("folds", [2, 3])
def test_a_fold_learns_the_labels_of_its_own_labellers(tmp_path: Path, folds: int) -> None:
    config = small_config(loop={**FOLDED, "folds": folds}, encoder=ALONE, select={"agreement": False})
    job = make_job(tmp_path, config, engine=Opinionated())
    job.run()
    assert set(labels(job, "r1")) == {0}
    assert [set(labels(job, f"r1-f{fold}")) for fold in range(folds)] == [{1}] * folds


def test_a_fold_learns_only_where_its_own_encoder_agrees(tmp_path: Path) -> None:
    job = make_job(tmp_path, small_config(loop=FOLDED), engine=Opinionated(), encoder=Agreeable(TASK))
    job.run()
    assert not labels(job, "r1")  # the committee's kinds are divided over every text
    assert set(labels(job, "r1-f0")) == set(labels(job, "r1-f1")) == {1}


def test_the_encoder_of_a_fold_knows_its_seeds_alone_and_reads_what_it_keeps(tmp_path: Path) -> None:
    job = make_job(tmp_path, small_config(loop=FOLDED))
    state = job.run()
    texts = {one.id: one.text for one in candidates(state)}
    for fold in seed_folds(job.ctx):
        (fit,) = job.encoder.jobs[f"job-test-e0-f{fold.number}-in"]
        (twin,) = [one for one in job.encoder.jobs["job-test-e0"] if one.tuned and one.rows == fit.rows]
        assert fit.rows == {seed.text for seed in fold.train} | set(TASK.names)
        assert fit.seed == twin.seed
        kept = {texts[i] for i, put in asked(job, state, 1, f"score-e0-f{fold.number}-in").items() if put}
        assert kept | {seed.text for seed in fold.held} == set(fit.texts)


def test_an_adapter_of_a_fold_reads_every_text_once(tmp_path: Path) -> None:
    config = small_config(loop={**FOLDED, "rounds": 2, "min_flip_rate": 0.0})
    job = make_job(tmp_path, config, engine=FakeEngine(noise=0.0))
    state = job.run()
    for fold in seed_folds(job.ctx):
        for short, born in (("m", 0), ("r1", 1)):
            outside = asked(job, state, born, f"score-{short}-f{fold.number}")
            inside = asked(job, state, born + 1, f"score-{short}-f{fold.number}-in")
            assert all(one is not inside[key] for key, one in outside.items())
            left_out = {one.id for one in candidates(state) if fold.leaves_out(one)}
            assert {key for key, one in outside.items() if one} == left_out


@pytest.mark.parametrize("labeller", [True, False])
def test_a_fold_without_an_adapter_of_its_own_is_given_up(tmp_path: Path, labeller: bool) -> None:
    config = small_config(loop={"rounds": 1, "members": 1, "folds": 2}, encoder={"labeller": labeller})
    job = make_job(tmp_path, config, engine=Refusing("-m-f0"))
    state = job.run()
    names = {fit.name.removeprefix("job-test-") for fit in job.trainer.jobs}
    assert names == {"m-f0", "m-f1", "m0", "r1-f1", "r1"}
    assert state.history[-1].holdout is not None
    assert state.history[-1].holdout.n == len(seed_folds(job.ctx)[1].held) < len(make_seeds())


def test_folds_of_the_base_model_begin_with_it(tmp_path: Path) -> None:
    config = small_config(loop={"rounds": 1, "members": 0, "folds": 2}, encoder=ALONE)
    job = make_job(tmp_path, config)
    job.run()
    assert labels(job, "r1-f0")
    assert labels(job, "r1-f1")


def test_caps_of_a_fold_are_those_of_its_share(tmp_path: Path) -> None:
    job = make_job(tmp_path, small_config(loop=FOLDED, encoder=ALONE, select={"per_label": 4, "agreement": False}))
    job.run()
    for short, most in (("r1", 4), ("r1-f0", 2), ("r1-f1", 2)):
        assert set(labels(job, short).values()) == {most}


def test_an_open_task_has_folds_that_decide_for_themselves(tmp_path: Path) -> None:
    job = make_open_job(tmp_path, open_config(loop={"rounds": 1, "members": 1, "folds": 2}))
    state = job.run()
    for fold in seed_folds(job.ctx):
        stage = StageKey(1, f"select-f{fold.number}")
        rows = [row for record in job.ctx.ledger.chunks(stage) for row in job.ctx.store.get(record.ref)]
        both = zip(candidates(state), rows, strict=True)
        assert not any(row["keep"] for one, row in both if fold.leaves_out(one))
        assert any(row["keep"] for row in rows)


def test_a_pool_that_grew_is_read_by_the_folds_to_its_end(tmp_path: Path) -> None:
    config = growing_config(80, loop=FOLDED)
    job = make_job(tmp_path, config, engine=FakeEngine(noise=0.5), seeds=named_seeds())
    state = job.run()
    assert state.extra
    size = sum(record.rows for record in job.ctx.ledger.chunks(StageKey(1, "score-m-f0-in")))
    assert size == state.pool.size

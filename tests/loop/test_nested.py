"""Every fold decides for itself what its next adapter learns: nothing of that has seen the seeds that it leaves out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from afdc.task import Task
from afdc_pipeline.rows import Candidate
from afdc_pipeline.seams import Scores, StageKey
from afdc_pipeline.stages.crossfit import seed_folds
from tests.fakes.encoder import FakeEncoder
from tests.fakes.engine import FakeEngine
from tests.fakes.job import TASK, FakeJob, make_job, make_seeds, small_config
from tests.loop.losing import Refusing

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


def learnt(job: FakeJob, short: str) -> set[int]:
    """Labels of the rows that an adapter learnt beside the seeds."""
    fit = next(fit for fit in job.trainer.jobs if fit.name.removeprefix("job-test-") == short)
    rows = [json.loads(line) for line in fit.rows.read_text().splitlines()]
    return {int(label) for row in rows if not row["gold"] for label in row["targets"]}


def asked(job: FakeJob, round: int, stage: str) -> dict[str, bool]:
    """Candidate id -> whether that labeller was asked about it."""
    pool = [one for number in (1, 2) for one in candidates(job, number)]
    rows = [row for record in job.ctx.ledger.chunks(StageKey(round, stage)) for row in job.ctx.store.get(record.ref)]
    return {one.id: bool(row["logprobs"]) for one, row in zip(pool, rows, strict=True)}


def candidates(job: FakeJob, number: int) -> list[Candidate]:
    rows = [r for c in job.ctx.ledger.chunks(StageKey(number, "filter")) for r in job.ctx.store.get(c.ref)]
    return [
        Candidate.from_row({k: v for k, v in row.items() if k not in ("drop", "detail")})
        for row in rows
        if not row["drop"]
    ]


@pytest.mark.parametrize("folds", [2, 3])
def test_a_fold_learns_the_labels_of_its_own_labellers(tmp_path: Path, folds: int) -> None:
    config = small_config(loop={**FOLDED, "folds": folds}, encoder=ALONE, select={"agreement": False})
    job = make_job(tmp_path, config, engine=Opinionated())
    job.run()
    assert learnt(job, "r1") == {0}
    assert [learnt(job, f"r1-f{fold}") for fold in range(folds)] == [{1}] * folds


def test_a_fold_learns_only_where_its_own_encoder_agrees(tmp_path: Path) -> None:
    job = make_job(tmp_path, small_config(loop=FOLDED), engine=Opinionated(), encoder=Agreeable(TASK))
    job.run()
    assert learnt(job, "r1") == set()  # the committee's kinds are divided over every text
    assert learnt(job, "r1-f0") == learnt(job, "r1-f1") == {1}


def test_the_encoder_of_a_fold_knows_its_seeds_alone_and_reads_what_it_keeps(tmp_path: Path) -> None:
    job = make_job(tmp_path, small_config(loop=FOLDED))
    job.run()
    texts = {one.id: one.text for number in (1, 2) for one in candidates(job, number)}
    for fold in seed_folds(job.ctx):
        (fit,) = job.encoder.jobs[f"job-test-e0-f{fold.number}-in"]
        (twin,) = [one for one in job.encoder.jobs["job-test-e0"] if one.tuned and one.rows == fit.rows]
        assert fit.rows == {seed.text for seed in fold.train}
        assert fit.seed == twin.seed
        kept = {texts[i] for i, put in asked(job, 1, f"score-e0-f{fold.number}-in").items() if put}
        assert kept | {seed.text for seed in fold.held} == set(fit.texts)


def test_an_adapter_of_a_fold_reads_every_text_once(tmp_path: Path) -> None:
    job = make_job(tmp_path, small_config(loop={**FOLDED, "rounds": 2}))
    job.run()
    for fold in seed_folds(job.ctx):
        for short, born in (("m", 0), ("r1", 1)):
            outside = asked(job, born, f"score-{short}-f{fold.number}")
            inside = asked(job, born + 1, f"score-{short}-f{fold.number}-in")
            assert all(one is not inside[key] for key, one in outside.items())
            left_out = {one.id for n in (1, 2) for one in candidates(job, n) if fold.leaves_out(one)}
            assert {key for key, one in outside.items() if one} == left_out


def test_a_fold_without_a_labeller_of_its_own_is_left_alone(tmp_path: Path) -> None:
    engine = Refusing("-m-f1")
    config = small_config(loop={"rounds": 1, "members": 1, "folds": 2}, encoder=ALONE)
    job = make_job(tmp_path, config, engine=engine)
    state = job.run()
    names = {fit.name.removeprefix("job-test-") for fit in job.trainer.jobs}
    assert names == {"m-f0", "m-f1", "m0", "r1-f0", "r1"}
    assert state.history[-1].holdout is not None
    assert state.history[-1].holdout.n == len(seed_folds(job.ctx)[0].held) < len(make_seeds())


def test_folds_of_the_base_model_begin_with_it(tmp_path: Path) -> None:
    config = small_config(loop={"rounds": 1, "members": 0, "folds": 2}, encoder=ALONE)
    job = make_job(tmp_path, config)
    job.run()
    assert learnt(job, "r1-f0")
    assert learnt(job, "r1-f1")

"""The encoder as a labeller of the loop: what it is tuned on, whom it labels, and what follows from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from afdc.task import Task
from afdc_pipeline.metrics import clearly_lower
from afdc_pipeline.scoring import normalise
from afdc_pipeline.seams import StageKey
from tests.fakes.encoder import UNTUNED, FakeEncoder, Seen
from tests.fakes.engine import FakeEngine, stable_rng
from tests.fakes.job import TASK, FakeJob, growing_config, make_job, make_seeds, small_config
from tests.loop.losing import named_seeds

FOLDED = {"rounds": 1, "members": 1, "folds": 2}


def fits(job: FakeJob, name: str, tuned: bool = True) -> list[Seen]:
    return [fit for fit in job.encoder.jobs[f"job-test-{name}"] if fit.tuned == tuned]


def real_texts() -> list[str]:
    return [f"real text {stable_rng(number).integers(10**12)} about {TASK.names[number % 3]}" for number in range(40)]


def test_no_text_is_labelled_by_a_fit_that_was_tuned_on_it(tmp_path: Path) -> None:
    config, engine = small_config(loop=FOLDED), FakeEngine(noise=0.0)
    job = make_job(tmp_path, config, engine=engine, seeds=named_seeds(), unlabeled=real_texts)
    state = job.run()
    assert sorted(job.encoder.jobs) == [f"job-test-{one}" for one in ("e0", "e0-f0-in", "e0-f1-in", "e1")]
    later = job.encoder.jobs["job-test-e1"]
    for one in (fits(job, "e0"), fits(job, "e0", tuned=False), later):
        assert not any(fit.rows & set(fit.texts) for fit in one)
        labelled = [text for fit in one for text in fit.texts]
        seeds = {seed.text for seed in named_seeds()}
        assert sum(text in seeds for text in labelled) == len(seeds)  # each by the fold that leaves it out
        assert len(set(labelled)) == len(labelled) == state.pool.size + len(seeds)
    whole, *folds = later
    assert whole.rows == folds[0].rows | folds[1].rows
    assert {text for text in whole.rows if text.startswith("real")}
    found = [round.encoder for round in state.history]
    assert all(one is not None and one.n == len(make_seeds()) for one in found)


@pytest.mark.parametrize("repeat", [0, 3])
def test_every_fit_learns_the_label_names(tmp_path: Path, repeat: int) -> None:
    config = small_config(loop=FOLDED, encoder={"name_repeat": repeat})
    job = make_job(tmp_path, config, seeds=named_seeds())
    job.run()
    for fit in (one for fits in job.encoder.jobs.values() for one in fits):
        assert (set(TASK.names) <= fit.rows) == (repeat > 0)
        assert not set(TASK.names) & set(fit.texts)


class Scatter(FakeEncoder):
    """As sure of itself as the other, and right by chance alone."""

    def _score(self, text: str, learnt: str, seed: int) -> np.ndarray:  # type: ignore[type-arg] # of float
        return super()._score(text.casefold().translate(str.maketrans("aeiou", "-----")), learnt, seed) * 5


def test_an_encoder_that_knows_nothing_is_flattened(tmp_path: Path) -> None:
    spread = {}
    config = small_config(loop=FOLDED, encoder={"name_repeat": 0})  # the noise of both follows from the rows
    for name, encoder in (("good", FakeEncoder(TASK)), ("bad", Scatter(TASK))):
        job = make_job(tmp_path / name, config, encoder=encoder, seeds=named_seeds())
        job.run()
        stored = [
            row["logprobs"]
            for chunk in job.ctx.ledger.chunks(StageKey(0, "score-e0"))
            for row in job.ctx.store.get(chunk.ref)
        ]
        spread[name] = float(normalise(np.array(stored)).max(axis=1).mean())
    assert spread["bad"] < 0.5 < spread["good"]


class Spoilt(FakeEncoder):
    """Knows the names of the labels as it is, and nothing once it was tuned; or the other way round."""

    def __init__(self, task: Task, spoilt: bool) -> None:
        super().__init__(task)
        self._spoilt = spoilt

    def _score(self, text: str, learnt: str, seed: int) -> np.ndarray:  # type: ignore[type-arg] # of float
        blind = learnt.endswith(UNTUNED) is not self._spoilt
        return super()._score(stable_rng(text).bytes(9).hex() if blind else text, learnt, seed)


@pytest.mark.parametrize("spoilt", [True, False])
def test_it_stays_as_it_is_where_that_tells_the_seeds_left_out_better(tmp_path: Path, spoilt: bool) -> None:
    encoder = Spoilt(TASK, spoilt)
    job = make_job(tmp_path, small_config(loop=FOLDED), encoder=encoder, seeds=named_seeds())
    state = job.run()
    assert len(fits(job, "e0")) == len(fits(job, "e0", tuned=False)) == 3
    assert {fit.tuned for fit in job.encoder.jobs["job-test-e1"]} == {not spoilt}
    assert [one.encoder_tuned for one in state.history] == [not spoilt] * 2
    assert all(one.encoder is not None and one.encoder.accuracy > 0.9 for one in state.history)


def test_without_folds_or_the_switch_it_is_tuned(tmp_path: Path) -> None:
    configs = (small_config(), small_config(loop=FOLDED, encoder={"compare_untuned": False}))
    for number, config in enumerate(configs):
        job = make_job(tmp_path / str(number), config, encoder=Spoilt(TASK, spoilt=True))
        job.run()
        assert all(fit.tuned for one in job.encoder.jobs.values() for fit in one)


def test_what_chance_can_tell_apart_decides_nothing() -> None:
    tuned = np.array([0.1, 2.0, 0.5, 0.4])
    assert clearly_lower(tuned - 0.1, tuned)
    assert not clearly_lower(tuned + 0.1, tuned)
    assert not clearly_lower(tuned, tuned)
    assert not clearly_lower(tuned - [1.0, -1.0, 1.0, -0.9], tuned)  # lower by 0.03 on average, give or take 0.6
    gain = np.array([0.5, 0.1, 0.9, 0.3])  # 0.45 on average, give or take 0.17: 2.6 standard errors
    assert not clearly_lower(tuned - gain, tuned)
    assert clearly_lower(tuned - gain - 0.2, tuned)


def test_rows_on_which_adapters_and_encoder_differ_are_left_out(tmp_path: Path) -> None:
    config = {"loop": {"rounds": 0, "members": 1, "folds": 0}}
    kept = {}
    for unanimous in (True, False):
        selecting = {"unanimous": unanimous, "agreement": False, "balance": False, "trust": False}
        job = make_job(tmp_path / str(unanimous), small_config(select=selecting, **config), engine=FakeEngine(noise=2))
        state = job.run()
        kept[unanimous], rejected = job.rows(state)
        reasons = {row["reason"] for row in rejected}
        assert ("labellers_disagree" in reasons) == unanimous
    assert len(kept[True]) < len(kept[False])


def test_a_pool_that_grows_is_labelled_by_the_same_encoder(tmp_path: Path) -> None:
    job = make_job(tmp_path, growing_config(100))
    state = job.run()
    assert state.extra
    first, grown = fits(job, "e0"), fits(job, "e0-a2")
    assert [(fit.rows, fit.seed) for fit in first] == [(fit.rows, fit.seed) for fit in grown]
    assert not set(first[0].texts) & set(grown[0].texts)
    assert not (tmp_path / "state" / "rounds" / "e0").exists()


def test_a_finished_stage_is_not_tuned_again(tmp_path: Path) -> None:
    first = make_job(tmp_path, small_config(loop=FOLDED))
    kept = first.rows(first.run())
    again = make_job(tmp_path, small_config(loop=FOLDED))
    assert again.rows(again.run()) == kept
    assert not again.encoder.jobs


def test_an_open_task_has_no_encoder(tmp_path: Path) -> None:
    from tests.fakes.open_job import make_open_job

    job = make_open_job(tmp_path)
    job.run()
    assert isinstance(job.ctx.task, Task)
    assert not job.encoder.jobs

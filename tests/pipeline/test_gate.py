"""The gate compares log losses where there are any, and scores where there are none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from afdc.result import Evaluation
from afdc_pipeline import metrics, scoring
from afdc_pipeline.gate import describe, mean_passes, never_worse, ranks


def told(accuracy: float, log_loss: float | None = None, token_f1: float | None = None) -> Evaluation:
    return Evaluation(accuracy=accuracy, n=48, log_loss=log_loss, token_f1=token_f1)


def test_one_answer_less_does_not_lose_where_the_log_loss_is_lower() -> None:
    assert never_worse(told(0.938, 0.20), told(0.958, 0.25))
    assert not never_worse(told(0.958, 0.25), told(0.938, 0.20))


def test_a_mean_is_refused_where_it_is_worse_by_both_measures() -> None:
    best = told(0.938, 0.25)
    assert mean_passes(told(0.938, 0.30), best)
    assert mean_passes(told(0.917, 0.20), best)
    assert not mean_passes(told(0.917, 0.30), best)
    assert not mean_passes(told(0.1, token_f1=0.4), told(0.1, token_f1=0.5))


@pytest.mark.parametrize("pair", [(None, told(0.9, 0.1)), (told(0.1, 2.0), None), (None, None)])
def test_without_gold_a_mean_passes(pair: tuple[Evaluation | None, Evaluation | None]) -> None:
    assert mean_passes(*pair)


def test_an_equal_adapter_may_take_the_place() -> None:
    assert never_worse(told(0.9, 0.2), told(0.9, 0.2))


def test_open_tasks_are_compared_by_token_f1() -> None:
    assert never_worse(told(0.1, token_f1=0.6), told(0.2, token_f1=0.5))
    assert not never_worse(told(0.2, token_f1=0.5), told(0.1, token_f1=0.6))


def test_where_one_lacks_a_log_loss_their_accuracies_count() -> None:
    """Rounds that an earlier version finished have none."""
    assert ranks([told(0.9), told(0.8, 0.2)]) == [0.9, 0.8]


@pytest.mark.parametrize("pair", [(None, told(0.9)), (told(0.1), None), (None, None)])
def test_without_gold_every_adapter_passes(pair: tuple[Evaluation | None, Evaluation | None]) -> None:
    assert never_worse(*pair)


def test_a_description_has_the_log_loss_where_there_is_one() -> None:
    assert describe(told(0.9375, 0.2412)) == "93.8% of held-out gold, log loss 0.241"
    assert describe(told(0.5, token_f1=0.7)) == "70.0% of held-out gold"


@given(st.integers(0, 10_000), st.floats(0.5, 2.0))
def test_the_log_loss_is_the_same_at_every_temperature(seed: int, temperature: float) -> None:
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 3, 40)
    logits = rng.normal(size=(40, 3)) + 2 * np.eye(3)[gold]
    coldest = 2 * scoring.TEMPERATURE_RANGE[0]  # nearer to it the search would end at the edge of its range
    assume(scoring.fit_temperature(logits, gold, prior_rows=0.0) > coldest)
    plain, scaled = (metrics.log_loss(scoring.normalise(logits / t), gold) for t in (1.0, temperature))
    assert plain is not None
    assert plain == pytest.approx(scaled, abs=1e-6)


def test_the_log_loss_of_texts_without_an_answer_is_that_of_a_guess() -> None:
    nothing = np.full((4, 3), np.nan)
    assert metrics.log_loss(nothing, np.zeros(4, np.int64)) == pytest.approx(np.log(3))
    assert metrics.log_loss(np.empty((0, 3)), np.zeros(0, np.int64)) is None


def test_being_sure_and_wrong_costs_more_than_being_unsure() -> None:
    gold = np.zeros(20, np.int64)
    right = np.tile([0.9, 0.05, 0.05], (19, 1))
    sure = np.vstack([right, [[1e-6, 1 - 2e-6, 1e-6]]])
    unsure = np.vstack([right, [[0.4, 0.5, 0.1]]])
    sure_loss, unsure_loss = metrics.log_loss(sure, gold), metrics.log_loss(unsure, gold)
    assert sure_loss is not None
    assert unsure_loss is not None
    assert sure_loss > unsure_loss

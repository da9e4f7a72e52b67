"""The gate compares log losses where there are any, and scores where there are none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from afdc.result import Evaluation
from afdc_pipeline import metrics, scoring
from afdc_pipeline.gate import best_of, clearly_behind, describe, passes, ranks, remark


def told(accuracy: float, log_loss: float | None = None, token_f1: float | None = None, n: int = 48) -> Evaluation:
    return Evaluation(accuracy=accuracy, n=n, log_loss=log_loss, token_f1=token_f1)


def test_one_answer_less_does_not_lose_where_the_log_loss_is_lower() -> None:
    assert passes(told(0.938, 0.20), told(0.958, 0.25))
    assert passes(told(0.5, 0.20), told(0.958, 0.25))


@pytest.mark.parametrize(("n", "before", "after", "passed"), [
    (16, 16, 15, True),
    (16, 16, 14, False),
    (48, 45, 44, True),
    (48, 45, 43, False),
    (48, 48, 47, True),
    (385, 231, 230, True),
    (385, 231, 223, False),
    (1000, 900, 898, False),
])  # fmt: skip
def test_a_higher_log_loss_loses_with_more_than_one_answer_fewer_right(
    n: int, before: int, after: int, passed: bool
) -> None:
    assert passes(told(after / n, 0.3, n=n), told(before / n, 0.2, n=n)) is passed
    assert passes(told(after / n, n=n), told(before / n, n=n)) is passed, "without log losses the answers alone count"


def test_what_passes_without_leading_is_told() -> None:
    assert remark(told(0.9375, 0.3, n=16), told(1.0, 0.0, n=16)) == (
        "behind on held-out gold (100.0% of held-out gold, log loss 0.000 before it), by no more than one answer of 16"
    )
    assert remark(told(0.9, 0.2), told(0.9, 0.2)) == remark(None, told(0.9)) == ""


def test_small_steps_down_do_not_add_up() -> None:
    best: Evaluation | None = None
    taken = []
    for right in (45, 44, 43, 42):
        one = told(right / 48, 1 - right / 48)
        taken.append(passes(one, best))
        best = best_of([best, one])
    assert taken == [True, True, False, False]
    assert best == told(45 / 48, 3 / 48)


def test_what_is_clearly_behind_is_so_by_both_measures_and_more_than_chance() -> None:
    assert clearly_behind(told(0.60, 1.7, n=385), told(0.72, 1.0, n=385))
    assert not clearly_behind(told(0.60, 1.7, n=48), told(0.625, 1.0, n=48))
    assert not clearly_behind(told(0.60, 0.9, n=385), told(0.72, 1.0, n=385))


@given(st.integers(1, 200), st.integers(0, 200), st.integers(0, 200))
def test_more_right_never_loses_where_fewer_pass(n: int, before: int, after: int) -> None:
    before, after = min(before, n), min(after, n)
    best, more = told(before / n, n=n), min(after + 1, n)
    assert not passes(told(after / n, n=n), best) or passes(told(more / n, n=n), best)


def test_open_tasks_are_compared_by_token_f1() -> None:
    assert passes(told(0.1, token_f1=0.6), told(0.2, token_f1=0.5))
    assert not passes(told(0.2, token_f1=0.3), told(0.1, token_f1=0.6))


def test_where_one_lacks_a_log_loss_their_accuracies_count() -> None:
    """Rounds that an earlier version finished have none."""
    assert ranks([told(0.9), told(0.8, 0.2)]) == [0.9, 0.8]


@pytest.mark.parametrize("pair", [(None, told(0.9)), (told(0.1), None), (None, None)])
def test_without_gold_every_adapter_passes(pair: tuple[Evaluation | None, Evaluation | None]) -> None:
    assert passes(*pair)
    assert remark(*pair) == ""


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


def test_the_log_loss_of_what_is_sure_and_right_has_no_sign() -> None:
    evaluation = metrics.evaluate(np.tile([1.0, 0.0], (4, 1)), np.zeros(4, np.int64))
    assert describe(evaluation) == "100.0% of held-out gold, log loss 0.000"


def test_being_sure_and_wrong_costs_more_than_being_unsure() -> None:
    gold = np.zeros(20, np.int64)
    right = np.tile([0.9, 0.05, 0.05], (19, 1))
    sure = np.vstack([right, [[1e-6, 1 - 2e-6, 1e-6]]])
    unsure = np.vstack([right, [[0.4, 0.5, 0.1]]])
    sure_loss, unsure_loss = metrics.log_loss(sure, gold), metrics.log_loss(unsure, gold)
    assert sure_loss is not None
    assert unsure_loss is not None
    assert sure_loss > unsure_loss

"""Metrics against scikit-learn where it has them, and against their definitions where it has not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from afdc_pipeline import metrics, scoring

NAMES = ["a", "b", "c", "d"]


def draw(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet([0.4, 0.6, 0.8, 0.01], size=n)
    gold = np.where(rng.random(n) < 0.6, probs.argmax(axis=1), rng.integers(0, 3, n))
    return probs, gold


@given(st.integers(0, 10_000), st.integers(1, 60))
def test_label_metrics_match_scikit_learn(seed: int, n: int) -> None:
    probs, gold = draw(seed, n)
    predicted = scoring.labels(probs)
    assert metrics.accuracy(gold, predicted) == pytest.approx(reference.accuracy_score(gold, predicted))
    wanted = reference.f1_score(gold, predicted, average="macro", zero_division=0)
    assert metrics.macro_f1(gold, predicted, 4) == pytest.approx(wanted)
    matrix = reference.confusion_matrix(gold, predicted, labels=range(4))
    np.testing.assert_array_equal(metrics.confusion_matrix(gold, predicted, 4), matrix)
    table = metrics.label_table(gold, predicted, NAMES)
    by_label = reference.precision_recall_fscore_support(gold, predicted, labels=range(4), zero_division=0)
    for values, field in zip(by_label, ("precision", "recall", "f1", "support"), strict=True):
        np.testing.assert_allclose([getattr(row, field) for row in table], values)
    assert metrics.brier_score(probs, gold) == pytest.approx(
        reference.brier_score_loss(gold, probs, labels=range(4), scale_by_half=False)
    )


def test_calibration_error_by_hand() -> None:
    probs = np.array([[0.95, 0.05], [0.95, 0.05], [0.62, 0.38], [1.0, 0.0]])
    gold = np.array([0, 1, 0, 0])
    # (14/15, 1] holds 0.95, 0.95 and 1.0; (9/15, 10/15] holds 0.62.
    wanted = 3 / 4 * abs(2 / 3 - 2.9 / 3) + 1 / 4 * (1 - 0.62)
    assert metrics.expected_calibration_error(probs, gold) == pytest.approx(wanted)
    bins = metrics.reliability_bins(probs, gold)
    assert [row.count for row in bins if row.count] == [1, 3]
    assert bins[0].accuracy is None


@given(st.integers(0, 1000))
def test_calibration_error_matches_a_direct_sum(seed: int) -> None:
    probs, gold = draw(seed)
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == gold
    wanted = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            wanted += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.expected_calibration_error(probs, gold) == pytest.approx(wanted)


def test_rows_without_an_answer_are_wrong_and_not_calibrated() -> None:
    probs = np.array([[0.9, 0.1], [np.nan, np.nan], [0.2, 0.8]])
    result = metrics.evaluate(probs, np.array([0, 0, 1]))
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.n == 3
    assert result.ece == pytest.approx((0.1 + 0.2) / 2)
    assert result.macro_f1 == pytest.approx((2 / 3 + 1) / 2)
    assert metrics.brier_score(probs[1:2], np.array([0])) is None
    assert metrics.expected_calibration_error(probs[1:2], np.array([0])) is None


def test_nothing_to_evaluate() -> None:
    empty = metrics.evaluate(np.zeros((0, 2)), np.zeros(0, dtype=int))
    assert (empty.accuracy, empty.n, empty.macro_f1, empty.ece) == (0.0, 0, 0.0, None)
    assert metrics.accuracy_interval(np.zeros(0, dtype=int), np.zeros(0, dtype=int)) == (0.0, 1.0)


def test_wilson_interval() -> None:
    low, high = metrics.accuracy_interval(np.zeros(10, dtype=int), np.array([0] * 8 + [1] * 2))
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert metrics.accuracy_interval(np.zeros(5, dtype=int), np.zeros(5, dtype=int))[1] == 1.0


def test_confidence_histogram_adds_up_over_chunks() -> None:
    values = np.append(draw(3)[0].max(axis=1), np.nan)
    edges, counts = metrics.confidence_histogram(values)
    parts = [metrics.confidence_histogram(part)[1] for part in np.array_split(values, 4)]
    assert (len(edges), counts.sum()) == (21, 300)
    np.testing.assert_array_equal(sum(parts), counts)

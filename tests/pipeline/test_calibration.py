"""The temperature that makes an adapter as sure as it agrees with others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afdc_pipeline import scoring
from afdc_pipeline.calibration import agreement, matched_temperature


def confidence(logprobs: np.ndarray, temperature: float) -> float:
    return float(scoring.normalise(logprobs / temperature).max(axis=1).mean())


@given(st.integers(0, 10_000), st.integers(2, 6), st.floats(0.6, 0.97))
def test_the_mean_confidence_is_the_wanted_one(seed: int, labels: int, wanted: float) -> None:
    logprobs = np.random.default_rng(seed).normal(size=(60, labels)) * 5
    assert confidence(logprobs, matched_temperature(logprobs, wanted)) == pytest.approx(wanted, abs=1e-6)


def test_what_cannot_be_reached_ends_at_the_range() -> None:
    logprobs = np.random.default_rng(0).normal(size=(40, 3)) * 5
    assert matched_temperature(logprobs, 1.0) == pytest.approx(scoring.TEMPERATURE_RANGE[0])
    assert matched_temperature(logprobs, 0.1) == pytest.approx(scoring.TEMPERATURE_RANGE[1])


def test_texts_without_an_answer_do_not_count() -> None:
    logprobs = np.random.default_rng(0).normal(size=(40, 3)) * 5
    with_gaps = np.vstack([logprobs, np.full((5, 3), np.nan)])
    assert matched_temperature(with_gaps, 0.8) == matched_temperature(logprobs, 0.8)
    assert matched_temperature(with_gaps[40:], 0.8) == 1.0


def test_agreement_is_never_all_or_none() -> None:
    labels = np.array([0, 1, 2, 1])
    assert agreement(labels, labels) == 5 / 6
    assert agreement(labels, labels[::-1]) == 1 / 6
    assert agreement(labels[:0], labels[:0]) == 0.5

"""How sure an adapter may be on real texts, where there is next to no gold to tell it by."""

from __future__ import annotations

import numpy as np

from afdc_pipeline import metrics, scoring
from afdc_pipeline.seams import FloatArray

STEPS = 60


def matched_temperature(logprobs: FloatArray, confidence: float) -> float:
    """Temperature at which the mean of the largest probabilities is `confidence`, by bisection over ln T.

    The mean falls with T, so there is one answer; where it lies outside scoring.TEMPERATURE_RANGE, the nearer end.

    Args:
        logprobs: [n, n_labels], any constant added to a row makes no difference; rows with NaN are left out. Without
            any row the answer is 1.
        confidence: 0..1.
    """
    usable = logprobs[~np.isnan(logprobs).any(axis=1)]
    if not len(usable):
        return 1.0
    low, high = np.log(scoring.TEMPERATURE_RANGE)
    for _ in range(STEPS):
        middle = (low + high) / 2
        surer = scoring.confidence(scoring.normalise(usable / np.exp(middle))).mean() > confidence
        low, high = (middle, high) if surer else (low, middle)
    return float(np.exp((low + high) / 2))


def agreement(labels: scoring.IntArray, others: scoring.IntArray) -> float:
    """Share of rows that two labellers label alike, smoothed.

    Two labellers that were trained apart disagree about as often as each is wrong (Jiang et al. 2022, "Assessing
    generalization via disagreement", arXiv 2106.13799): it tells an accuracy without gold.
    """
    return metrics.smoothed(metrics.accuracy(others, labels), len(labels))

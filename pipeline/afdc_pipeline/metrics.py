"""How good labels and probabilities are, against gold.

`gold` and `predicted` are label indices, [n]; a predicted -1 (no answer) is always wrong. `probs` is [n, n_labels], and
a row of NaN is a text without an answer: it counts as wrong, and calibration leaves it out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afdc.result import EvalSummary, Evaluation, LabelScore, ReliabilityPoint, TokenF1
from afdc_pipeline import scoring
from afdc_pipeline.answers import exact_match, token_f1
from afdc_pipeline.seams import FloatArray

Labels = NDArray[np.integer]

ECE_BINS = 15
CLEARLY = 3.0  # standard errors: of 16 seeds, at temperatures fitted to them, 2 are had by chance (docs/quality-log.md)


def evaluate(probs: FloatArray, gold: Labels) -> Evaluation:
    """Accuracy, macro-F1 and calibration error of the argmax labels, and the log loss of the distributions."""
    predicted = scoring.labels(probs)
    return Evaluation(
        accuracy=accuracy(gold, predicted),
        n=len(gold),
        macro_f1=macro_f1(gold, predicted, probs.shape[1]),
        ece=expected_calibration_error(probs, gold),
        log_loss=log_loss(probs, gold),
    )


def evaluate_answers(gold: Sequence[str], given: Sequence[str]) -> Evaluation:
    """Share of exact matches (as accuracy) and mean token F1 of free answers; "" is no answer and counts as wrong."""
    pairs = list(zip(gold, given, strict=True))
    return Evaluation(
        accuracy=sum(exact_match(*pair) for pair in pairs) / len(pairs),
        token_f1=sum(token_f1(*pair) for pair in pairs) / len(pairs),
        n=len(pairs),
    )


def accuracy(gold: Labels, predicted: Labels) -> float:
    """Share of rows with the gold label; 0 without rows."""
    return float(np.mean(gold == predicted)) if len(gold) else 0.0


def smoothed(share: float, n: int) -> float:
    """A share of n rows with one row more that counts and one that does not: never 0 or 1 (Laplace)."""
    return (share * n + 1) / (n + 2)


def log_loss(probs: FloatArray, gold: Labels) -> float | None:
    """Mean -ln p(gold) in nats, at the temperature that makes it smallest; None without rows.

    A scale of its own for each set of distributions makes two of them comparable whose calibrations differ. A text
    without an answer costs what an even guess does.
    """
    return max(0.0, float(losses(probs, gold).mean())) if len(gold) else None  # not -0.0, which would be told as -0.000


def losses(probs: FloatArray, gold: Labels) -> FloatArray:
    """-ln p(gold) of every row, [n] in nats, at the temperature that makes their mean smallest."""
    with np.errstate(divide="ignore"):
        logprobs = np.log(probs)
    fitted = scoring.normalise(logprobs / scoring.fit_temperature(logprobs, gold, prior_rows=0.0))
    told = np.nan_to_num(fitted[np.arange(len(gold)), gold], nan=1 / probs.shape[1])
    found: FloatArray = -np.log(np.maximum(told, scoring.TINY))
    return found


def clearly_lower(one: FloatArray, other: FloatArray) -> bool:
    """Whether losses of the same rows, [n] each, are lower by more than CLEARLY standard errors of their difference."""
    gain = other - one
    return len(gain) > 1 and bool(gain.mean() > CLEARLY * gain.std(ddof=1) / np.sqrt(len(gain)))


def accuracy_interval(gold: Labels, predicted: Labels, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of the accuracy (Wilson 1927), 95 % by default: honest for a handful of rows."""
    n = len(gold)
    if not n:
        return (0.0, 1.0)
    share = accuracy(gold, predicted)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (max(centre - half, 0.0), min(centre + half, 1.0))


def confusion_matrix(gold: Labels, predicted: Labels, n_labels: int) -> NDArray[np.int64]:
    """Rows by gold label, columns by predicted label, [n_labels, n_labels]. Rows without an answer are in no cell."""
    known = (gold >= 0) & (predicted >= 0)
    cells = np.asarray(gold)[known].astype(np.int64) * n_labels + np.asarray(predicted)[known]
    return np.bincount(cells, minlength=n_labels * n_labels).reshape(n_labels, n_labels)


def label_table(gold: Labels, predicted: Labels, names: Sequence[str]) -> list[LabelScore]:
    """Precision, recall and F1 of each label, in the order of `names`; a share without a denominator is 0."""
    right = np.diag(confusion_matrix(gold, predicted, len(names)))
    support = np.bincount(gold[gold >= 0], minlength=len(names))
    answered = np.bincount(predicted[predicted >= 0], minlength=len(names))
    precision, recall = _share(right, answered), _share(right, support)
    f1 = _share(2 * right, support + answered)
    return [
        LabelScore(
            name=name,
            precision=float(precision[i]),
            recall=float(recall[i]),
            f1=float(f1[i]),
            support=int(support[i]),
            predicted=int(answered[i]),
        )
        for i, name in enumerate(names)
    ]


def macro_f1(gold: Labels, predicted: Labels, n_labels: int) -> float:
    """Mean F1 over the labels that occur in gold or in the predictions; 0 when none does."""
    table = label_table(gold, predicted, [""] * n_labels)
    scores = [row.f1 for row in table if row.support or row.predicted]
    return sum(scores) / len(scores) if scores else 0.0


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> FloatArray:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def reliability_bins(probs: FloatArray, gold: Labels, bins: int = ECE_BINS) -> list[ReliabilityPoint]:
    """Confidence against accuracy in equal-width bins (low, high] over 0..1: the points of a reliability diagram."""
    answered = ~np.isnan(probs).any(axis=1)
    confidence = scoring.confidence(probs[answered])
    right = scoring.labels(probs[answered]) == gold[answered]
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    confident, accurate = _means(place, confidence, counts), _means(place, right, counts)
    return [
        ReliabilityPoint(
            low=i / bins, high=(i + 1) / bins, count=int(counts[i]), confidence=confident[i], accuracy=accurate[i]
        )
        for i in range(bins)
    ]


def _means(place: Labels, values: NDArray[Any], counts: Labels) -> list[float | None]:
    sums = np.bincount(place, weights=values, minlength=len(counts)).tolist()
    return [total / count if count else None for total, count in zip(sums, counts.tolist(), strict=True)]


def expected_calibration_error(probs: FloatArray, gold: Labels, bins: int = ECE_BINS) -> float | None:
    """ECE (Guo et al. 2017): mean |accuracy - confidence| over bins, weighted by their rows; None without rows."""
    table = reliability_bins(probs, gold, bins)
    total = sum(row.count for row in table)
    gaps = (
        row.count * abs(row.accuracy - row.confidence)
        for row in table
        if row.accuracy is not None and row.confidence is not None
    )
    return sum(gaps) / total if total else None


def brier_score(probs: FloatArray, gold: Labels) -> float | None:
    """Mean squared distance to the one-hot gold label (Brier 1950), summed over labels: 0..2; None without rows."""
    answered = ~np.isnan(probs).any(axis=1)
    if not answered.any():
        return None
    errors = probs[answered].copy()
    errors[np.arange(len(errors)), np.asarray(gold)[answered]] -= 1.0
    return float((errors**2).sum(axis=1).mean())


def confidence_histogram(confidence: NDArray[np.floating], bins: int = 20) -> tuple[FloatArray, NDArray[np.int64]]:
    """Edges over 0..1, [bins + 1], and number of rows a bin, [bins]; NaN is left out. Chunks' counts add up."""
    counts, edges = np.histogram(confidence[~np.isnan(confidence)], bins=bins, range=(0.0, 1.0))
    return edges, counts.astype(np.int64)


def summarise_eval(
    base: Evaluation | None, seeds_only: Sequence[Evaluation], final: Evaluation | None, n: int, *, is_open: bool
) -> EvalSummary:
    """Base model, mean of the seeds-only adapters and M* side by side; `n` gold texts."""
    return EvalSummary(
        base=base.accuracy if base else None,
        seeds_only=mean(one.accuracy for one in seeds_only) if seeds_only else None,
        final=final.accuracy if final else None,
        n=n,
        token_f1=_token_f1(base, seeds_only, final) if is_open and n else None,
    )


def _token_f1(base: Evaluation | None, seeds_only: Sequence[Evaluation], final: Evaluation | None) -> TokenF1:
    return TokenF1(
        base=base.token_f1 if base else None,
        seeds_only=mean(one.score for one in seeds_only) if seeds_only else None,
        final=final.token_f1 if final else None,
    )

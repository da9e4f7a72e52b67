"""Free answers: when two count as one, how far samples agree, and which of them stands for all (docs/decisions/0009).

Words are those of `filters.UNIT`: runs of letters and digits, and each Chinese, Japanese or Korean character.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from afdc_pipeline import scoring
from afdc_pipeline.filters import UNIT

LONG_WORDS = 9  # from here on two right answers are rarely the same word for word
SAME_F1 = 0.7  # token F1 at which two long answers count as one


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer of a labeller. `logprob`: mean log-probability a token, nats. An unusable one has the text ""."""

    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the labellers' samples say together.

    Attributes:
        answer: the medoid of the samples, as it was written.
        agreement: its mean similarity to all samples, itself included, in 0..1.
        logprob: its mean log-probability a token, nats.
        confidence: agreement x exp(logprob), in 0..1.
        margin, entropy: of the distribution over groups of answers that count as one.
        disagreement: of the labellers' distributions, nats (`scoring.disagreement`).
    """

    answer: str
    agreement: float
    logprob: float
    confidence: float
    margin: float
    entropy: float
    disagreement: float


@lru_cache(maxsize=1 << 16)
def answer_words(text: str) -> tuple[str, ...]:
    """Words of an answer without case and punctuation; an answer of punctuation alone is one word."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return tuple(UNIT.findall(folded)) or tuple(folded.split())


def exact_match(one: str, other: str) -> bool:
    """Equal words in the same order."""
    return answer_words(one) == answer_words(other)


def token_f1(one: str, other: str) -> float:
    """Harmonic mean of the shares of common words, in 0..1 (Rajpurkar et al. 2016, without the articles' removal)."""
    a, b = Counter(answer_words(one)), Counter(answer_words(other))
    common = (a & b).total()
    return 2 * common / (a.total() + b.total()) if common else 0.0


def similarity(one: str, other: str) -> float:
    """1 for answers with equal words; token F1 for two long answers; 0 for others and for an unusable one."""
    if not one or not other:
        return 0.0
    if exact_match(one, other):
        return 1.0
    is_long = min(len(answer_words(one)), len(answer_words(other))) >= LONG_WORDS
    return token_f1(one, other) if is_long else 0.0


def judge(members: Sequence[Sequence[Sample]]) -> Verdict | None:
    """The answer of a committee, and how sure it is; None where no labeller has a usable one.

    Args:
        members: the samples of each labeller, as many from each.
    """
    samples = [sample for member in members for sample in member]
    usable = [at for at, sample in enumerate(samples) if sample.text]
    if not usable:
        return None
    table = np.array([[similarity(a.text, b.text) for b in samples] for a in samples])
    agreement = table.mean(axis=1)
    best = min(usable, key=lambda at: (-round(float(agreement[at]), 9), -samples[at].logprob, samples[at].text))
    probs = _distributions(table, _order(usable, agreement, best), [len(member) for member in members])
    mean = scoring.ensemble(probs)
    chosen = samples[best]
    return Verdict(
        answer=chosen.text,
        agreement=float(agreement[best]),
        logprob=chosen.logprob,
        confidence=float(agreement[best]) * math.exp(min(chosen.logprob, 0.0)),
        margin=float(scoring.margin(mean)[0]),
        entropy=float(scoring.entropy(mean)[0]),
        disagreement=float(scoring.disagreement(probs)[0]),
    )


def _order(usable: Sequence[int], agreement: NDArray[np.float64], best: int) -> list[int]:
    """Samples that may lead a group: the medoid, then by agreement."""
    return [best, *sorted((at for at in usable if at != best), key=lambda at: -agreement[at])]


def _distributions(table: NDArray[np.float64], order: Sequence[int], sizes: Sequence[int]) -> list[NDArray[np.float64]]:
    """Each labeller's distribution [1, groups] over the groups; every unusable sample is a group of its own.

    A sample joins the first leader that it is similar to; one that finds none leads.
    """
    leaders: list[int] = []
    group = np.full(len(table), -1)
    for at in order:
        found = next((place for place, leader in enumerate(leaders) if table[at, leader] >= SAME_F1), None)
        group[at] = len(leaders) if found is None else found
        if found is None:
            leaders.append(at)
    lost = np.flatnonzero(group < 0)
    group[lost] = len(leaders) + np.arange(len(lost))
    count = max(len(leaders) + len(lost), 2)  # a margin is one between two
    ends = np.cumsum(sizes)
    parts = [group[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    return [np.bincount(part, minlength=count)[None] / max(len(part), 1) for part in parts]

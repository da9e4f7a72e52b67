"""What the report shows besides result.json: counts and a few sample rows, small whatever the size of the run.

`Collector` fills most of it from one pass over the exported rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from afdc.result import ReliabilityPoint

CONFIDENCE_BINS = 20
SAMPLES = 24
SAMPLES_PER_GROUP = 3


@dataclass(frozen=True)
class FunnelStep:
    """A step that texts pass through. `lost`: what did not come from the step before, counted by reason."""

    name: str
    count: int
    lost: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleRow:
    """A row to show. `intended`: the label it was generated for; "" where there is none."""

    text: str
    label: str
    intended: str = ""
    confidence: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class ReportFacts:
    """Everything that the plots need. An empty field leaves its plot out.

    Attributes:
        confidence_kept: scored rows kept by confidence, in equal-width bins over 0..1.
        confidence_left: scored rows left out, in the same bins.
        threshold: tau, drawn into the histogram; 0 draws nothing.
        reliability: confidence against accuracy on gold (--eval, else the held-out seeds), final labeller.
        seed_counts, kept_counts: rows by label: the seeds, and everything else in the data set.
    """

    instruction: str = ""
    confidence_kept: tuple[int, ...] = ()
    confidence_left: tuple[int, ...] = ()
    threshold: float = 0.0
    reliability: tuple[ReliabilityPoint, ...] = ()
    funnel: tuple[FunnelStep, ...] = ()
    seed_counts: Mapping[str, int] = field(default_factory=dict)
    kept_counts: Mapping[str, int] = field(default_factory=dict)
    kept: tuple[SampleRow, ...] = ()
    rejected: tuple[SampleRow, ...] = ()


class Collector:
    """Passes rows on to the exporter and remembers what the report needs; memory does not grow with the rows."""

    def __init__(self, *, is_open: bool = False) -> None:
        """Args: is_open: answers stand in the place of labels, nearly one a row, and are not counted."""
        self._is_open = is_open
        self.confidence_kept = [0] * CONFIDENCE_BINS
        self.confidence_left = [0] * CONFIDENCE_BINS
        self.seed_counts: Counter[str] = Counter()
        self.kept_counts: Counter[str] = Counter()
        self.kept: list[SampleRow] = []
        self.rejected: list[SampleRow] = []
        self._groups: Counter[tuple[str, str]] = Counter()

    def watch_kept(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """The same rows, counted on their way. Samples: up to 3 a label."""
        for row in rows:
            label = "" if self._is_open else str(row["label"])
            if row["source"] == "seed":
                self.seed_counts[label] += 1
            else:
                self.kept_counts[label] += 1
                _count(self.confidence_kept, row["confidence"])
                self._sample(self.kept, "kept", str(row["label"]), row)
            yield row

    def watch_rejected(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """The same rows, counted on their way. Samples: up to 3 a reason."""
        for row in rows:
            _count(self.confidence_left, row["confidence"])
            self._sample(self.rejected, "rejected", str(row["reason"]), row)
            yield row

    def facts(self, **others: Any) -> ReportFacts:
        """What was collected, and the fields that rows do not tell."""
        return ReportFacts(
            confidence_kept=tuple(self.confidence_kept),
            confidence_left=tuple(self.confidence_left),
            seed_counts=dict(self.seed_counts),
            kept_counts=dict(self.kept_counts),
            kept=tuple(self.kept),
            rejected=tuple(self.rejected),
            **others,
        )

    def _sample(self, shown: list[SampleRow], kind: str, group: str, row: Mapping[str, Any]) -> None:
        if len(shown) >= SAMPLES or self._groups[kind, group] >= SAMPLES_PER_GROUP:
            return
        self._groups[kind, group] += 1
        shown.append(
            SampleRow(row["text"], row["label"] or "", row["intended"] or "", row["confidence"], row["reason"] or "")
        )


def _count(bins: list[int], confidence: float | None) -> None:
    if confidence is not None and confidence == confidence:  # not NaN
        bins[min(int(confidence * len(bins)), len(bins) - 1)] += 1

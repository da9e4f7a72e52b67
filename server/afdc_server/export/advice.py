"""What a run's own numbers tell its owner to do."""

from __future__ import annotations

from collections.abc import Sequence

from afdc.result import RoundResult
from afdc_pipeline import gate

SHOWN_LABELS = 5


def advise(rounds: Sequence[RoundResult]) -> list[str]:
    """A sentence or two for each thing that the rounds show; nothing where all is well."""
    return [*_encoder_ahead(rounds), *_without_rows(rounds)] if rounds else []


def _encoder_ahead(rounds: Sequence[RoundResult]) -> list[str]:
    """Round 0 alone compares them fairly: later folds learn from labels of a committee that knows all seeds."""
    adapters, encoder = rounds[0].holdout, rounds[0].encoder
    if adapters is None or encoder is None or gate.passes(adapters, encoder):
        return []
    return [
        f"A sentence encoder with a linear head is right about {encoder.score:.1%} of the seeds, each left out once, "
        f"adapters trained on the others about {adapters.score:.1%}. Compare such a classifier with this adapter "
        "before you deploy it, and give real texts with --unlabeled, which the encoder helps to label."
    ]


def _without_rows(rounds: Sequence[RoundResult]) -> list[str]:
    counts = rounds[-1].per_label
    bare = [name for name, count in counts.items() if not count]
    if not bare:
        return []
    shown = ", ".join(bare[:SHOWN_LABELS]) + (", ..." if len(bare) > SHOWN_LABELS else "")
    return [
        f"{len(bare)} of {len(counts)} labels have no row but their seeds: {shown}. "
        "Give more seeds of them, or real texts with --unlabeled."
    ]

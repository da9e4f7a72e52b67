"""What a run's own numbers tell its owner to do."""

from __future__ import annotations

from collections.abc import Sequence

from afdc.result import RoundResult
from afdc.wording import one_line
from afdc_pipeline import gate

SHOWN_LABELS = 5
SHOWN_CHARS = 40  # of a label's name


def advise(rounds: Sequence[RoundResult], *, unlabeled: bool = False) -> list[str]:
    """A few sentences for each thing that the rounds show; nothing where all is well.

    Args:
        unlabeled: real texts were given already.
    """
    return [*_encoder_ahead(rounds, unlabeled), *_without_rows(rounds, unlabeled)] if rounds else []


def _encoder_ahead(rounds: Sequence[RoundResult], unlabeled: bool) -> list[str]:
    """Round 0 alone compares them fairly: later folds learn from labels of a committee that knows all seeds."""
    adapters, encoder = rounds[0].holdout, rounds[0].encoder
    if adapters is None or encoder is None or not gate.clearly_behind(adapters, encoder):
        return []
    more = "" if unlabeled else " Real texts with --unlabeled may help the adapter: the encoder labels them, too."
    return [
        f"Of the seeds, each by a fit of other seeds, a sentence encoder with a linear head has {encoder.score:.1%} "
        f"right, adapters have {adapters.score:.1%}. Compare such a classifier with this adapter before you deploy it."
        + more
    ]


def _without_rows(rounds: Sequence[RoundResult], unlabeled: bool) -> list[str]:
    counts = rounds[-1].per_label
    bare = [name for name, count in counts.items() if not count]
    if not bare:
        return []
    more = "" if unlabeled else ", or real texts with --unlabeled"
    shown = ", ".join(one_line(name, SHOWN_CHARS) for name in bare[:SHOWN_LABELS])
    rest = ", ..." if len(bare) > SHOWN_LABELS else ""
    return [
        f"{len(bare)} of {len(counts)} labels have no row but their seeds; give more seeds of them{more}: {shown}{rest}"
    ]

"""What a job has spent, read from its ledger."""

from __future__ import annotations

from afdc_pipeline.context import JobContext
from afdc_pipeline.pool import UNLABELED
from afdc_pipeline.stopping import Spent

GROW = "grow-"  # and the number of the augment round that it decides on
AUGMENT_STAGES = ("generate", "filter", UNLABELED)


def spent(ctx: JobContext) -> Spent:
    """Tokens and seconds of everything that is committed, over all starts of the job."""
    totals = ctx.ledger.totals()
    return Spent(
        tokens=int(totals.get("prompt_tokens", 0) + totals.get("completion_tokens", 0)),
        seconds=sum(ctx.ledger.seconds().values()),
    )


def stage_seconds(ctx: JobContext, number: int) -> dict[str, float]:
    """Seconds of a round's stages, to the millisecond.

    Augment rounds have numbers of their own: planned ones count for round 0, the others for the round that drew them.
    """
    every = ctx.ledger.seconds()
    drawn_by = {int(stage.removeprefix(GROW)): at for at, stage in sorted(every) if stage.startswith(GROW)}
    seconds: dict[str, float] = {}
    for (at, stage), value in every.items():
        augmenting = stage in AUGMENT_STAGES
        if (drawn_by.get(at, 0) if augmenting else at) == number:
            seconds[f"{stage}-{at}" if augmenting else stage] = round(value, 3)
    return seconds

"""The adapter that is handed out: the mean of the rounds' adapters (Wortsman et al. 2022, arXiv 2203.05482).

Adapters of two rounds are fitted to much the same rows from the same base, and err apart. Their mean costs no training
and one adapter's time to serve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from afdc_pipeline.context import JobContext
from afdc_pipeline.stages.fit import AVERAGE, average_adapters
from afdc_pipeline.stages.reading import Scorer
from afdc_pipeline.stages.swap import accept_adapter


@dataclass(frozen=True)
class Averaged:
    """`scorer` is None where the engine refused the mean; `note` says what is handed out, or why the mean is not."""

    scorer: Scorer | None
    note: str


async def average_rounds(ctx: JobContext, round: int, rounds: Sequence[Scorer]) -> Averaged:
    """Publish, verify and load the mean of at least two adapters, at the temperature of the last of them.

    Args:
        round: the last one of the job, which the mean belongs to.
    """
    last, names = rounds[-1], listed([one.name for one in rounds])
    adapter = await average_adapters(ctx, round, [one.served for one in rounds], last.temperature)
    refused = await accept_adapter(ctx, round, AVERAGE, adapter)
    if refused:
        return Averaged(None, f"handed out: {last.served}; the mean of {names} was not activated: {refused}")
    return Averaged(replace(last, name=AVERAGE, adapter=adapter, born=round), f"handed out: {adapter}, mean of {names}")


def listed(names: Sequence[str]) -> str:
    """For example "r1, r2 and r4"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))

"""What a scorer is worth on gold: the user's --eval set, and the seeds that no adapter is trained on."""

from __future__ import annotations

from collections.abc import Sequence

from afdc.result import Evaluation
from afdc_pipeline.context import JobContext
from afdc_pipeline.stages.evaluate import evaluate
from afdc_pipeline.stages.grade import grade
from afdc_pipeline.stages.reading import Scorer


async def on_eval(ctx: JobContext, round: int, scorer: Scorer) -> Evaluation | None:
    """On --eval; None without it."""
    return await on_gold(ctx, round, "eval", [(one.text, one.label or "") for one in ctx.inputs.eval], scorer)


async def on_holdout(ctx: JobContext, round: int, scorer: Scorer) -> Evaluation | None:
    """On the seeds held out; None without any."""
    return await on_gold(ctx, round, "holdout", [(one.text, one.label) for one in ctx.inputs.holdout_seeds], scorer)


async def on_gold(
    ctx: JobContext, round: int, what: str, pairs: Sequence[tuple[str, str]], scorer: Scorer
) -> Evaluation | None:
    """By label scores, or by greedy answers where the task is open; arguments as of `reading.read_gold`."""
    return await (grade if ctx.task.is_open else evaluate)(ctx, round, what, pairs, scorer)

"""Whether one more augment round is drawn for the target: decided once, since a resumed run has spent more."""

from __future__ import annotations

from dataclasses import asdict

from afdc_pipeline import growth
from afdc_pipeline.context import JobContext
from afdc_pipeline.seams import StageKey
from afdc_pipeline.spending import GROW, spent
from afdc_pipeline.stages.runner import StageRun, run_stage


async def end_of_growth(ctx: JobContext, round: int, standing: growth.Standing) -> str:
    """Why no further augment round is drawn, or "" to draw one."""
    ceiling = growth.row_ceiling(
        ctx.config.select, ctx.task, len(ctx.inputs.training_seeds), unlabeled=ctx.inputs.unlabeled is not None
    )

    async def body(_run: StageRun) -> dict[str, str]:
        return {"reason": growth.end_of_growth(standing, ctx.config, spent(ctx), ceiling) or ""}

    key = StageKey(round, f"{GROW}{ctx.config.augment.rounds + standing.extra + 1}")
    result = await run_stage(ctx, key, asdict(standing), body, title="")
    return str(result["reason"])

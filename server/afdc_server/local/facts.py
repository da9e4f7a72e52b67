"""The facts of the report that rows do not tell: the selection funnel and the reliability of the final adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from afdc.result import ReliabilityPoint
from afdc_pipeline import metrics
from afdc_pipeline.context import JobContext
from afdc_pipeline.scoring import normalise
from afdc_pipeline.stages.evaluate import stored_logprobs
from afdc_pipeline.stages.reading import gold_key
from afdc_pipeline.state import BASE, LoopState
from afdc_server.export.facts import FunnelStep


def report_facts(ctx: JobContext, state: LoopState, filtered: Mapping[str, int]) -> dict[str, Any]:
    """Keyword arguments for `Collector.facts`. `filtered`: texts dropped before scoring, counted by reason."""
    return {
        "instruction": ctx.task.instruction,
        "threshold": ctx.config.select.threshold,
        "reliability": reliability(ctx, state),
        "funnel": funnel(state, filtered),
    }


def funnel(state: LoopState, filtered: Mapping[str, int]) -> tuple[FunnelStep, ...]:
    """Generated → accepted by the filters → scored → selected, each with what was lost and why."""
    last = state.decisions[-1]
    lost: Mapping[str, int] = {reason: n for reason, n in last.reasons.items() if reason != "kept"}
    unscored = lost.get("engine_rejected", 0)
    return (
        FunnelStep("generated or given", state.pool.size + sum(filtered.values())),
        FunnelStep("new and well-formed", state.pool.size, filtered),
        FunnelStep("scored", state.pool.size - unscored, {"engine_rejected": unscored} if unscored else {}),
        FunnelStep("selected", last.selected, {k: n for k, n in lost.items() if k != "engine_rejected"}),
    )


def reliability(ctx: JobContext, state: LoopState) -> tuple[ReliabilityPoint, ...]:
    """Confidence against accuracy of M* on --eval; empty without it, and for an open task."""
    if not ctx.inputs.eval or state.best == BASE or ctx.task.is_open:
        return ()
    logprobs = stored_logprobs(ctx, gold_key(state.best.born, "eval", state.best))
    gold = np.array(ctx.task.positions(example.label or "" for example in ctx.inputs.eval))
    return tuple(metrics.reliability_bins(normalise(logprobs), gold))

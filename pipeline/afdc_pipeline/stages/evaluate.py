"""Accuracy on gold texts: the user's --eval set and the seeds held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from afdc.result import Evaluation
from afdc_pipeline import metrics
from afdc_pipeline.context import JobContext
from afdc_pipeline.scoring import normalise
from afdc_pipeline.seams import FloatArray, StageKey
from afdc_pipeline.stages.runner import StageRun, run_stage
from afdc_pipeline.stages.score import Scorer, read_logprobs, score_rows
from afdc_pipeline.stages.swap import serve

CHUNK_TEXTS = 256


async def evaluate(
    ctx: JobContext, round: int, what: str, examples: Sequence[tuple[str, str]], scorer: Scorer
) -> Evaluation | None:
    """Score gold (text, label) pairs with one scorer; None without any.

    Args:
        what: "eval" or "holdout"; names the stage together with the scorer.
    """
    if not examples:
        return None
    key = eval_key(round, what, scorer)

    async def body(run: StageRun) -> dict[str, Any]:
        await serve(ctx, scorer.adapter)
        parts = []
        for index, start in enumerate(range(0, len(examples), CHUNK_TEXTS)):
            if index in run.done:
                rows = ctx.store.get(run.done[index].ref)
            else:
                texts = [text for text, _ in examples[start : start + CHUNK_TEXTS]]
                rows = score_rows(await ctx.engine.score(texts, ctx.task, scorer.adapter))
                run.put(index, rows)
            parts.append(read_logprobs(rows, len(ctx.task.names)))
        summary = summarise(ctx, examples, np.concatenate(parts))
        ctx.progress.advance(0, accuracy=summary.accuracy)
        return summary.model_dump(exclude={"token_f1"})

    inputs = {"examples": [list(example) for example in examples], "scorer": scorer.served}
    title = f"{what}: {'base model' if scorer.adapter is None else scorer.name}"
    result = await run_stage(ctx, key, inputs, body, title=title, total=len(examples))
    return Evaluation.model_validate(result)


def eval_key(round: int, what: str, scorer: Scorer) -> StageKey:
    """Where an evaluation's log-probs are stored."""
    return StageKey(round, f"{what}-{scorer.name}")


def stored_logprobs(ctx: JobContext, key: StageKey) -> FloatArray:
    """Log-probs [n, n_labels] that an evaluation stored."""
    rows = [row for record in ctx.ledger.chunks(key) for row in ctx.store.get(record.ref)]
    return read_logprobs(rows, len(ctx.task.names))


def summarise(ctx: JobContext, examples: Sequence[tuple[str, str]], logprobs: FloatArray) -> Evaluation:
    """Metrics of log-probs [n, n_labels] against the examples' labels; a text that was rejected counts as wrong."""
    gold = np.array(ctx.task.positions(label for _, label in examples))
    return metrics.evaluate(normalise(logprobs), gold)

"""Accuracy on gold texts: the user's --eval set and the seeds held out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from afdc.result import Evaluation
from afdc_pipeline import metrics
from afdc_pipeline.context import JobContext
from afdc_pipeline.scoring import normalise
from afdc_pipeline.seams import FloatArray, StageKey
from afdc_pipeline.stages.reading import Rows, Scorer, read_gold
from afdc_pipeline.stages.score import read_logprobs, read_scores


async def evaluate(
    ctx: JobContext, round: int, what: str, examples: Sequence[tuple[str, str]], scorer: Scorer
) -> Evaluation | None:
    """Score gold (text, label) pairs with one scorer; arguments as of `read_gold`."""

    async def read(texts: Sequence[str]) -> Rows:
        return await read_scores(ctx, texts, scorer)

    def judge(rows: Rows) -> Evaluation:
        return summarise(ctx, examples, read_logprobs(rows, len(ctx.task.names)))

    return await read_gold(ctx, round, what, examples, scorer, read, judge)


def stored_logprobs(ctx: JobContext, key: StageKey) -> FloatArray:
    """Log-probs [n, n_labels] that an evaluation stored."""
    rows = [row for record in ctx.ledger.chunks(key) for row in ctx.store.get(record.ref)]
    return read_logprobs(rows, len(ctx.task.names))


def summarise(ctx: JobContext, examples: Sequence[tuple[str, str]], logprobs: FloatArray) -> Evaluation:
    """Metrics of log-probs [n, n_labels] against the examples' labels; a text that was rejected counts as wrong."""
    gold = np.array(ctx.task.positions(label for _, label in examples))
    return metrics.evaluate(normalise(logprobs), gold)

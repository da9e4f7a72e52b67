"""Exact match and token F1 on gold answers of an open task: `evaluate` without labels."""

from __future__ import annotations

from collections.abc import Sequence

from afdc.result import Evaluation
from afdc_pipeline import metrics
from afdc_pipeline.context import JobContext
from afdc_pipeline.seams import GenerateRequest, Sampling
from afdc_pipeline.stages.answer import answer_row, answer_tokens, ask
from afdc_pipeline.stages.reading import Rows, Scorer, read_gold


async def grade(
    ctx: JobContext, round: int, what: str, examples: Sequence[tuple[str, str]], scorer: Scorer
) -> Evaluation | None:
    """Compare one greedy answer a text with the gold answer; arguments as of `read_gold`."""
    greedy = Sampling(temperature=0.0, max_tokens=answer_tokens(ctx))

    async def read(texts: Sequence[str]) -> Rows:
        requests = [GenerateRequest(f"g{i}", text, 1, greedy, scorer.adapter) for i, text in enumerate(texts)]
        return [answer_row(one) for one in await ask(ctx.engine, ctx.task, requests)]

    def judge(rows: Rows) -> Evaluation:
        given = [next(iter(row["answers"]), "") for row in rows]
        return metrics.evaluate_answers([gold for _, gold in examples], given)

    return await read_gold(ctx, round, what, examples, scorer, read, judge, inputs={"tokens": greedy.max_tokens})

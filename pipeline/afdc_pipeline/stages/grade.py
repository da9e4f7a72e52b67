"""Exact match and token F1 on gold answers of an open task: `evaluate` without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from afdc.result import Evaluation
from afdc_pipeline import metrics
from afdc_pipeline.context import JobContext
from afdc_pipeline.seams import GenerateRequest, Sampling
from afdc_pipeline.stages.answer import answer_row, answer_tokens, ask
from afdc_pipeline.stages.evaluate import CHUNK_TEXTS, eval_key
from afdc_pipeline.stages.runner import StageRun, run_stage
from afdc_pipeline.stages.score import Scorer
from afdc_pipeline.stages.swap import serve


async def grade(
    ctx: JobContext, round: int, what: str, examples: Sequence[tuple[str, str]], scorer: Scorer
) -> Evaluation | None:
    """Compare one greedy answer a text with the gold answer; None without examples. Arguments as of `evaluate`."""
    if not examples:
        return None
    greedy = Sampling(temperature=0.0, max_tokens=answer_tokens(ctx))

    async def body(run: StageRun) -> dict[str, Any]:
        await serve(ctx, scorer.adapter)
        given: list[str] = []
        for index, start in enumerate(range(0, len(examples), CHUNK_TEXTS)):
            if index in run.done:
                rows = ctx.store.get(run.done[index].ref)
            else:
                texts = [text for text, _ in examples[start : start + CHUNK_TEXTS]]
                requests = [GenerateRequest(f"g{i}", text, 1, greedy, scorer.adapter) for i, text in enumerate(texts)]
                rows = [answer_row(one) for one in await ask(ctx, requests)]
                run.put(index, rows)
            given += [next(iter(row["answers"]), "") for row in rows]
        summary = metrics.evaluate_answers([gold for _, gold in examples], given)
        ctx.progress.advance(0, accuracy=summary.accuracy)
        return summary.model_dump()

    inputs = {"examples": [list(one) for one in examples], "scorer": scorer.served, "tokens": greedy.max_tokens}
    title = f"{what}: {'base model' if scorer.adapter is None else scorer.name}"
    result = await run_stage(ctx, eval_key(round, what, scorer), inputs, body, title=title, total=len(examples))
    return Evaluation.model_validate(result)

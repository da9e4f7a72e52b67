"""Score and relabel: log-probs of every label for every text of D1, one scorer at a time.

A scorer is the base model or one adapter. Its scores are a stage of chunks aligned with the chunks of the pool, so a
committee is several such stages and no text is scored twice by the same weights. Chunks go to the engine one after
another: a resumed stage then asks for the same batches as an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afdc_pipeline.context import JobContext
from afdc_pipeline.pool import Pool, PoolChunk
from afdc_pipeline.seams import FloatArray, Scores, StageKey
from afdc_pipeline.stages.runner import StageRun, run_stage
from afdc_pipeline.stages.swap import serve


@dataclass(frozen=True)
class Scorer:
    """Who scores: `name` is short and stable ("base", "m0", "r1"); `adapter` is the served name, None for the base."""

    name: str
    adapter: str | None = None

    @property
    def served(self) -> str:
        """What rows record as their scorer: the adapter, or "" for the base model."""
        return self.adapter or ""


async def score_pool(
    ctx: JobContext, round: int, pool: Pool, scorer: Scorer, part: str = "", first: int = 0
) -> StageKey:
    """Score candidates with one scorer and return the stage that holds the log-probs.

    Args:
        part: names the stage of a pool that has grown; "" for the whole pool.
        first: index of the first chunk that the scorer has not seen.
    """
    key = StageKey(round, f"score-{scorer.name}{part}")
    chunks = pool.chunks()[first:]

    async def body(run: StageRun) -> dict[str, Any]:
        await serve(ctx, scorer.adapter)
        for chunk in chunks:
            if chunk.index not in run.done:
                await _score_chunk(ctx, run, pool, chunk, scorer)
        return {"scorer": scorer.served}

    total = sum(chunk.size for chunk in chunks)
    inputs = {"pool": pool.digest, "scorer": scorer.served, "engine": [ctx.info.device, ctx.info.dtype]}
    await run_stage(ctx, key, inputs, body, title=f"relabel D1 with {title_of(scorer)}", total=total)
    return key


def score_rows(scores: Scores) -> list[dict[str, Any]]:
    """Flat rows of a batch of scores; a rejected text has no log-probs and a reason."""
    return [
        {"logprobs": [] if index in scores.errors else row.tolist(), "error": scores.errors.get(index, "")}
        for index, row in enumerate(scores.logprobs)
    ]


def read_logprobs(rows: Sequence[dict[str, Any]], n_labels: int) -> FloatArray:
    """Log-probs [n, n_labels] of stored score rows; NaN where the text was rejected."""
    out = np.full((len(rows), n_labels), np.nan)
    for index, row in enumerate(rows):
        if row["logprobs"]:
            out[index] = row["logprobs"]
    return out


async def _score_chunk(ctx: JobContext, run: StageRun, pool: Pool, chunk: PoolChunk, scorer: Scorer) -> None:
    texts = [candidate.text for candidate in pool.read(chunk)]
    scores = await ctx.engine.score(texts, ctx.task, scorer.adapter)
    run.put(chunk.index, score_rows(scores), rejected=len(scores.errors))


def title_of(scorer: Scorer) -> str:
    """What the progress display calls a scorer."""
    return "the base model" if scorer.adapter is None else f"adapter {scorer.name}"

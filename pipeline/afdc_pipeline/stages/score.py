"""Score and relabel: log-probs of every label for every text of D1, one scorer at a time.

A scorer is the base model or one adapter. Its scores are a stage of chunks aligned with the chunks of the pool, so a
committee is several such stages and no text is scored twice by the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np

from afdc_pipeline.context import JobContext
from afdc_pipeline.pool import Pool
from afdc_pipeline.rows import Candidate
from afdc_pipeline.seams import FloatArray, Scores, StageKey
from afdc_pipeline.stages.reading import Rows, Scorer, read_pool

UNASKED: Mapping[str, Any] = {"logprobs": [], "error": ""}


async def score_pool(
    ctx: JobContext, round: int, pool: Pool, scorer: Scorer, part: str = "", first: int = 0
) -> StageKey:
    """Score candidates with one scorer and return the stage that holds the log-probs.

    A text that it is not asked about has none.

    Args:
        part: names the stage of a pool that has grown; "" for the whole pool.
        first: index of the first chunk that the scorer has not seen.
    """

    async def read(candidates: Sequence[Candidate]) -> Rows:
        asked = [scorer.asked_about(candidate) for candidate in candidates]
        texts = [candidate.text for candidate in compress(candidates, asked)]
        found = iter(await read_scores(ctx, texts, scorer))
        return [next(found) if put else dict(UNASKED) for put in asked]

    key = StageKey(round, f"score-{scorer.name}{part}")
    return await read_pool(ctx, key, pool, scorer, read, title="relabel D1", first=first)


async def read_scores(ctx: JobContext, texts: Sequence[str], scorer: Scorer) -> Rows:
    """Rows of label log-probs of a batch of texts."""
    return score_rows(await ctx.engine.score(texts, ctx.task, scorer.adapter))


def score_rows(scores: Scores) -> Rows:
    """Flat rows of a batch of scores; a rejected text has no log-probs and a reason."""
    return [
        {"logprobs": [] if index in scores.errors else row.tolist(), "error": scores.errors.get(index, "")}
        for index, row in enumerate(scores.logprobs)
    ]


def read_logprobs(rows: Sequence[dict[str, Any]], n_labels: int) -> FloatArray:
    """Log-probs [n, n_labels] of stored score rows; NaN where the text was rejected or not put."""
    out = np.full((len(rows), n_labels), np.nan)
    for index, row in enumerate(rows):
        if row["logprobs"]:
            out[index] = row["logprobs"]
    return out

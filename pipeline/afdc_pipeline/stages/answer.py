"""Sample the answers of an open task: n draws a text and labeller, in the chunks of the pool.

It stands where `stages/score.py` stands for a task with labels. A draw's seed is a hash of the run's seed, the
labeller's name and the candidate, so a draw that is repeated is the same draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from afdc.config import AnswerConfig
from afdc.files import canonical_json, sha256_bytes
from afdc.task import normalise_text
from afdc_pipeline.answers import Sample
from afdc_pipeline.augment import estimate_tokens
from afdc_pipeline.context import JobContext
from afdc_pipeline.filters import is_blank
from afdc_pipeline.pool import Pool, PoolChunk
from afdc_pipeline.seams import Completion, Generated, GenerateRequest, Sampling, StageKey
from afdc_pipeline.stages.runner import StageRun, run_stage
from afdc_pipeline.stages.score import Scorer, title_of
from afdc_pipeline.stages.swap import serve

MIN_ANSWER_TOKENS = 16


async def answer_pool(
    ctx: JobContext, round: int, pool: Pool, scorer: Scorer, part: str = "", first: int = 0
) -> StageKey:
    """Answer candidates with one labeller and return the stage that holds the samples; arguments as of `score_pool`."""
    key = StageKey(round, f"answer-{scorer.name}{part}")
    chunks = pool.chunks()[first:]

    async def body(run: StageRun) -> dict[str, Any]:
        await serve(ctx, scorer.adapter)
        for chunk in chunks:
            if chunk.index not in run.done:
                await _answer_chunk(ctx, run, pool, chunk, scorer)
        return {"scorer": scorer.served}

    inputs = {
        "pool": pool.digest,
        "scorer": scorer.served,
        "engine": [ctx.info.device, ctx.info.dtype],
        "sampling": [ctx.config.answer.samples, asdict(pool_sampling(ctx, scorer, ""))],
    }
    total = sum(chunk.size for chunk in chunks)
    await run_stage(ctx, key, inputs, body, title=f"answer D1 with {title_of(scorer)}", total=total)
    return key


async def _answer_chunk(ctx: JobContext, run: StageRun, pool: Pool, chunk: PoolChunk, scorer: Scorer) -> None:
    requests = [
        GenerateRequest(one.id, one.text, ctx.config.answer.samples, pool_sampling(ctx, scorer, one.id), scorer.adapter)
        for one in pool.read(chunk)
    ]
    rows = [answer_row(one) for one in await ask(ctx, requests)]
    run.put(chunk.index, rows, rejected=sum(bool(row["error"]) for row in rows))


async def ask(ctx: JobContext, requests: Sequence[GenerateRequest]) -> list[Generated]:
    """Answers to texts of the task, in the order of the requests. Their ids must differ."""
    found = {one.id: one async for one in ctx.engine.generate(requests, ctx.task)}
    return [found[request.id] for request in requests]


def pool_sampling(ctx: JobContext, scorer: Scorer, candidate: str) -> Sampling:
    """How a candidate is answered: repeatable, and different for every labeller."""
    config = ctx.config.answer
    digest = sha256_bytes(canonical_json([ctx.config.seed, scorer.name, candidate]))
    return Sampling(
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=answer_tokens(ctx),
        seed=int(digest[:16], 16) >> 34,  # as in augment.py: the engine wants a signed 32-bit integer and adds the draw
    )


def answer_tokens(ctx: JobContext) -> int:
    """Tokens that an answer may have in this job."""
    return answer_room(ctx.config.answer, (seed.label for seed in ctx.inputs.seeds), ctx.info.max_model_len)


def answer_room(config: AnswerConfig, answers: Iterable[str], max_model_len: int) -> int:
    """Tokens that an answer may have: as configured, else twice a bound on the longest of `answers`, half at most."""
    longest = max(map(estimate_tokens, answers), default=0)
    return config.max_tokens or min(max(MIN_ANSWER_TOKENS, 2 * longest), max_model_len // 2)


def answer_row(generated: Generated) -> dict[str, Any]:
    """Flat row of one text's samples; an unusable one, unfinished or blank, has the text ""."""
    texts = [_usable(one) for one in generated.completions]
    error = generated.error
    if not error and not any(texts):
        error = "no sampled answer came to its end"
    return {
        "answers": texts,
        "logprobs": [float(one.mean_logprob or 0.0) for one in generated.completions],
        "error": error,
    }


def _usable(completion: Completion) -> str:
    text = normalise_text(completion.text)
    return text if completion.finished and not is_blank(text) else ""


def read_samples(row: Mapping[str, Any]) -> list[Sample]:
    """The samples of a stored row."""
    return [Sample(text, logprob) for text, logprob in zip(row["answers"], row["logprobs"], strict=True)]

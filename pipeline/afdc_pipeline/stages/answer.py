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
from afdc.task import Task, normalise_text
from afdc_pipeline.answers import Sample
from afdc_pipeline.augment import estimate_tokens
from afdc_pipeline.context import JobContext
from afdc_pipeline.filters import is_blank
from afdc_pipeline.pool import Pool
from afdc_pipeline.rows import Candidate
from afdc_pipeline.seams import Completion, Engine, Generated, GenerateRequest, Sampling, StageKey
from afdc_pipeline.stages.reading import Rows, Scorer, read_pool

MIN_ANSWER_TOKENS = 16


async def answer_pool(
    ctx: JobContext, round: int, pool: Pool, scorer: Scorer, part: str = "", first: int = 0
) -> StageKey:
    """Answer candidates with one labeller and return the stage that holds the samples; arguments as of `score_pool`."""
    config, room = ctx.config.answer, answer_tokens(ctx)

    def sampling(candidate: str) -> Sampling:
        return Sampling(config.temperature, config.top_p, room, seed=draw_seed(ctx, scorer, candidate))

    async def read(candidates: Sequence[Candidate]) -> Rows:
        requests = [
            GenerateRequest(one.id, one.text, config.samples, sampling(one.id), scorer.adapter) for one in candidates
        ]
        return [answer_row(one) for one in await ask(ctx.engine, ctx.task, requests)]

    key = StageKey(round, f"answer-{scorer.name}{part}")
    inputs = {"sampling": [config.samples, asdict(sampling(""))]}
    return await read_pool(ctx, key, pool, scorer, read, title="answer D1", first=first, inputs=inputs)


async def ask(engine: Engine, task: Task, requests: Sequence[GenerateRequest]) -> list[Generated]:
    """Answers to texts of an open task, in the order of the requests. Their ids must differ."""
    found = {one.id: one async for one in engine.generate(requests, task)}
    return [found[request.id] for request in requests]


def draw_seed(ctx: JobContext, scorer: Scorer, candidate: str) -> int:
    """Repeatable, and different for every labeller."""
    digest = sha256_bytes(canonical_json([ctx.config.seed, scorer.name, candidate]))
    return int(digest[:16], 16) >> 34  # as in augment.py: the engine wants a signed 32-bit integer and adds the draw


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

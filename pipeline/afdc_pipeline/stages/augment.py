"""Build D1: generate variants of the seeds in R rounds, filter them, and add the user's unlabelled texts.

Generation answers in any order and judges each completion by itself. The filter then reads the chunks in order and
drops what repeats: its decisions depend on what it accepted before, so it never runs ahead of itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from afdc.config import PromptStyle
from afdc.task import normalise_text, text_id
from afdc_pipeline.augment import PlannedRequest, plan_requests, refused_candidates, screen
from afdc_pipeline.batches import batched
from afdc_pipeline.context import JobContext
from afdc_pipeline.filters import Style, TextLimits
from afdc_pipeline.pool import DETAIL, DROP, UNLABELED, Pool, to_candidate
from afdc_pipeline.rows import Candidate
from afdc_pipeline.seams import DuplicateIndex, Generated, StageKey
from afdc_pipeline.stages.runner import StageRun, chunks_digest, run_stage

Row = dict[str, Any]
Chunk = tuple[int, list[PlannedRequest]]

CHAT_PARAMETERS = 1_000_000_000
MIN_CHUNK = 16
MAX_CHUNK = 512
CHUNKS_A_STAGE = 200
WINDOW_REQUESTS = 2048  # handed to the engine at once; the engine bounds how many of them run
UNLABELED_CHUNK = 512
EVAL_PREFIX = "eval:"


async def build_pool(ctx: JobContext, seen: SeenTexts) -> Pool:
    """Generate and filter every augment round, then the unlabelled texts; returns D1."""
    for number in range(1, ctx.config.augment.rounds + 1):
        await _generate(ctx, number)
        await _filter(ctx, number, seen)
    if ctx.inputs.unlabeled is not None:
        await _take_unlabeled(ctx, seen)
    return Pool(ctx.ledger, ctx.store, seen.keys)


async def extend_pool(ctx: JobContext, seen: SeenTexts, number: int) -> Pool:
    """Generate and filter one augment round more; D1 with its texts behind those it had."""
    await _generate(ctx, number)
    await _filter(ctx, number, seen)
    return Pool(ctx.ledger, ctx.store, seen.keys)


class SeenTexts:
    """The duplicate index, opened when the first unfinished filter needs it and then brought up to date.

    Gold comes first: a variant that repeats a seed is dropped, and one that repeats an --eval text is a leak.
    """

    def __init__(self, ctx: JobContext) -> None:
        self._ctx = ctx
        self._index: DuplicateIndex | None = None
        self.keys: list[StageKey] = []

    def open(self) -> DuplicateIndex:
        """The index with everything that the finished stages accepted."""
        if self._index is None:
            self._index = self._ctx.open_index(self._ctx.layout.state / "duplicates.db")
            for example in self._ctx.inputs.eval:
                self._index.add(EVAL_PREFIX + example.id, example.text)
            for seed in self._ctx.inputs.seeds:
                self._index.add(seed.id, seed.text)
            for key in self.keys:
                for record in self._ctx.ledger.chunks(key):
                    _index_accepted(self._index, self._ctx.store.get(record.ref))
        return self._index

    def close(self) -> None:
        """Release the index file; it is built anew where it is needed again."""
        if self._index is not None:
            self._index.close()
            self._index = None


async def _generate(ctx: JobContext, number: int) -> None:
    plan = _plan(ctx, number)
    per_chunk = chunk_size(len(plan))

    async def body(run: StageRun) -> dict[str, Any]:
        chunks = enumerate(batched(plan, per_chunk))
        waiting = ((index, part) for index, part in chunks if index not in run.done)
        for window in batched(waiting, max(WINDOW_REQUESTS // per_chunk, 2)):
            await _generate_window(ctx, run, window)
        return {"requests": len(plan)}

    inputs = {
        "requests": len(plan),
        "seeds": [seed.id for seed in ctx.inputs.training_seeds],
        "prompts": [[one.prompt_hash, one.sampling] for one in (plan[0], plan[-1])],
        "engine": [ctx.info.device, ctx.info.dtype],
    }
    total = ctx.draws_a_round
    await run_stage(ctx, StageKey(number, "generate"), inputs, body, title="generate variants", total=total)


def _plan(ctx: JobContext, number: int) -> Sequence[PlannedRequest]:
    return plan_requests(
        ctx.inputs.training_seeds,
        ctx.task,
        ctx.config.augment,
        job=ctx.job,
        augment_round=number,
        seed=ctx.config.seed,
        style=pick_style(ctx.config.augment.prompt_style, chat=ctx.info.chat, parameters=ctx.info.parameters),
        max_model_len=ctx.info.max_model_len,
    )


def pick_style(wanted: PromptStyle, *, chat: bool, parameters: int) -> Style:
    """Chat for instruct models that are large enough to follow the instruction, continuation for all others."""
    if wanted != "auto":
        return wanted
    return "chat" if chat and parameters >= CHAT_PARAMETERS else "continuation"


def chunk_size(requests: int) -> int:
    """Requests a chunk: a kill loses little of a small job, and a large one does not drown in files."""
    return min(max(requests // CHUNKS_A_STAGE, MIN_CHUNK), MAX_CHUNK)


async def _generate_window(ctx: JobContext, run: StageRun, window: Sequence[Chunk]) -> None:
    """Keep the engine full over several chunks; commit each as soon as its last request has answered."""
    limits = TextLimits.from_seeds(ctx.inputs.seeds, ctx.task)
    parts = dict(window)
    owner = {planned.request.id: index for index, part in window for planned in part}
    answers: dict[int, dict[str, Generated]] = {index: {} for index in parts}
    async for generated in ctx.engine.generate([planned.request for _, part in window for planned in part]):
        index = owner[generated.id]
        answers[index][generated.id] = generated
        if len(answers[index]) == len(parts[index]):
            got, part = answers.pop(index), parts.pop(index)
            run.put(index, [row for one in part for row in _raw_rows(ctx, limits, one, got[one.request.id])])


def _raw_rows(ctx: JobContext, limits: TextLimits, planned: PlannedRequest, generated: Generated) -> Iterator[Row]:
    """One row a draw; those of a request that the engine refused have no text, and its reason."""
    if generated.error:
        for candidate in refused_candidates(planned):
            yield {**candidate.to_row(), DROP: "engine_rejected", DETAIL: generated.error}
    for one in screen(planned, generated, limits, ctx.task, ctx.config.augment.min_mean_logprob):
        yield {**one.candidate.to_row(), DROP: one.reason or "", DETAIL: ""}


async def _filter(ctx: JobContext, number: int, seen: SeenTexts) -> None:
    source = StageKey(number, "generate")

    async def body(run: StageRun) -> dict[str, Any]:
        index = seen.open()
        for record in ctx.ledger.chunks(source):
            if record.index in run.done:
                _index_accepted(index, ctx.store.get(run.done[record.index].ref))
            else:
                raw = ctx.store.get(record.ref)
                _commit(
                    run, record.index, [_deduplicate(index, to_candidate(row), row[DROP], row[DETAIL]) for row in raw]
                )
        return {}

    inputs = {"raw": chunks_digest(ctx, source)}
    total = sum(record.rows for record in ctx.ledger.chunks(source))
    key = StageKey(number, "filter")
    await run_stage(ctx, key, inputs, body, title="filter and deduplicate", total=total)
    seen.keys.append(key)


def _deduplicate(index: DuplicateIndex, candidate: Candidate, reason: str = "", detail: str = "") -> Row:
    """Drop what repeats a gold text or an accepted one; otherwise accept it and remember it.

    Args:
        reason: why the text was dropped before, or "".
        detail: what the engine said about it, where it refused it.
    """
    hit = None if reason else index.find(candidate.text)
    if hit is not None:
        leak = hit.id.startswith(EVAL_PREFIX)
        reason = "eval_leak" if leak else f"{hit.kind}_duplicate"
        candidate = replace(candidate, cluster="" if leak else hit.id)
    if not reason:
        index.add(candidate.id, candidate.text)
        candidate = replace(candidate, cluster=candidate.id)
    return {**candidate.to_row(), DROP: reason, DETAIL: detail}


async def _take_unlabeled(ctx: JobContext, seen: SeenTexts) -> None:
    """Add the user's real texts: they carry no intended label and are judged only by what they repeat."""

    async def body(run: StageRun) -> dict[str, Any]:
        index = seen.open()
        texts = ctx.inputs.unlabeled() if ctx.inputs.unlabeled else ()
        for number, batch in enumerate(batched(texts, UNLABELED_CHUNK)):
            if number in run.done:
                _index_accepted(index, ctx.store.get(run.done[number].ref))
            else:
                _commit(run, number, [_deduplicate(index, _real_text(text)) for text in batch])
        return {}

    key = StageKey(0, UNLABELED)
    await run_stage(ctx, key, {"texts": ctx.inputs.unlabeled_digest}, body, title="take unlabelled texts")
    seen.keys.append(key)


def _real_text(text: str) -> Candidate:
    clean = normalise_text(text)
    return Candidate(id=text_id("u_", clean), text=clean, source="unlabeled")


def _commit(run: StageRun, index: int, rows: Sequence[Row]) -> None:
    accepted = sum(not row[DROP] for row in rows)
    run.put(index, rows, accepted=accepted, dropped=len(rows) - accepted)


def _index_accepted(index: DuplicateIndex, rows: Iterable[Row]) -> None:
    for row in rows:
        if not row[DROP]:
            index.add(row["id"], row["text"])

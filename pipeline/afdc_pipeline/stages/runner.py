"""Run a stage once: skip it when the ledger has it, resume it from its last committed chunk, commit it whole.

The inputs of a stage are hashed. A finished stage with other inputs means that the run folder belongs to another job.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afdc.files import canonical_json, sha256_bytes
from afdc_pipeline.context import JobContext
from afdc_pipeline.seams import ChunkRecord, StageKey

SECONDS = "seconds"


@dataclass
class StageRun:
    """A stage in progress. `put` commits a chunk: rows, counters and what the engine spent on them."""

    ctx: JobContext
    key: StageKey
    inputs: str
    done: Mapping[int, ChunkRecord]
    mark: float
    """When the last chunk was committed, so that a chunk records its own seconds."""

    def put(self, index: int, rows: Sequence[Mapping[str, Any]], **counters: float) -> None:
        """Write the rows durably, then record them. A kill between the two leaves a file that nothing refers to."""
        ref = self.ctx.store.put(rows)
        spent = self.ctx.meter.take()
        now = self.ctx.clock()
        chunk = ChunkRecord(index, ref, len(rows), {**counters, **spent, SECONDS: now - self.mark})
        self.mark = now
        self.ctx.ledger.commit_chunk(self.key, self.inputs, chunk)
        tokens = spent["completion_tokens"] or spent["prompt_tokens"]
        self.ctx.progress.advance(len(rows), **counters, tokens=tokens)


async def run_stage(
    ctx: JobContext,
    key: StageKey,
    inputs: Any,
    body: Callable[[StageRun], Awaitable[Mapping[str, Any]]],
    *,
    title: str,
    total: int | None = None,
) -> dict[str, Any]:
    """Return the stage's result, computing it only where the ledger does not hold it.

    Args:
        inputs: JSON-able description of all that the result depends on.
        body: does the work and returns the result; it must skip the chunks in `StageRun.done`.
        title: what the progress display says; "" for a stage too short to show.
        total: units that the progress display counts to.
    """
    digest = sha256_bytes(canonical_json(inputs))
    finished = ctx.ledger.finished(key, digest)
    if finished is not None:
        return finished
    done = {chunk.index: chunk for chunk in ctx.ledger.begun(key, digest)}
    if title:
        ctx.progress.stage(key, title, total)
        ctx.progress.advance(sum(chunk.rows for chunk in done.values()))
    started = ctx.clock()
    result = dict(await body(StageRun(ctx, key, digest, done, started)))
    earlier = sum(chunk.counters[SECONDS] for chunk in done.values())
    ctx.ledger.commit_stage(key, digest, result, earlier + ctx.clock() - started, ctx.meter.take())
    return result


def chunks_digest(ctx: JobContext, key: StageKey) -> str:
    """Hash over the references of a stage's chunks: the identity of its rows."""
    return sha256_bytes(canonical_json([(c.index, c.ref) for c in ctx.ledger.chunks(key)]))

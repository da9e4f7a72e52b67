"""Put texts before one scorer, chunk by chunk: the candidates of D1, or gold examples.

What is read of a text, its label scores or its sampled answers, is a function of the caller's. Chunks go to the engine
one after another: a resumed stage then asks for the same batches as an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from afdc.files import sha256_bytes
from afdc.result import Evaluation
from afdc_pipeline.context import JobContext
from afdc_pipeline.holdout import Fold
from afdc_pipeline.pool import Pool
from afdc_pipeline.rows import Candidate
from afdc_pipeline.seams import StageKey
from afdc_pipeline.stages.runner import StageRun, run_stage
from afdc_pipeline.stages.swap import serve

CHUNK_TEXTS = 256

View = Literal["adapter", "encoder"]

Rows = list[dict[str, Any]]
"""What was read, a row a text: "error" says why the engine refused it, "" where it did not."""


@dataclass(frozen=True)
class Scorer:
    """Who scores: `name` is short and stable ("base", "m0", "r1"); `adapter` is the served name, None for the base."""

    name: str
    adapter: str | None = None
    trained_on: StageKey | None = None
    """The decisions whose rows it was trained on; None for the base model and for adapters of seeds alone."""
    fold: Fold | None = None
    """What it was trained without, and labels, or where `inside` the rest; None: it labels all of D1."""
    inside: bool = False
    """It labels what its fold keeps: the texts that the fold's own next adapter may learn from."""
    out_of_sample: bool = False
    """It labels no text with weights that were trained on it."""
    temperature: float = 1.0
    """Its log-probs are divided by it before they are compared with those of other kinds."""
    born: int = 0
    """The round that it was trained in."""
    one_in: int = 1
    """It labels a sample of so many texts' one, drawn by their ids."""
    view: View = "adapter"
    """What kind of model it is: `scoring.ensemble_of_kinds`."""

    @property
    def served(self) -> str:
        """What rows record as their scorer: the adapter, or "" for the base model."""
        return self.adapter or ""

    @property
    def title(self) -> str:
        """What the progress display calls it."""
        if self.view == "encoder":
            return "the encoder"
        return "the base model" if self.adapter is None else f"adapter {self.name}"

    def asked_about(self, candidate: Candidate) -> bool:
        """Whether it labels this text."""
        return self._draws(candidate) and (self.fold is None or self.fold.leaves_out(candidate) is not self.inside)

    def _draws(self, candidate: Candidate) -> bool:
        # other digits than those that deal real texts out to the folds: the two choices must not go together
        return self.one_in == 1 or int(sha256_bytes(candidate.id.encode())[8:16], 16) % self.one_in == 0


async def read_pool(
    ctx: JobContext,
    key: StageKey,
    pool: Pool,
    scorer: Scorer,
    read: Callable[[Sequence[Candidate]], Awaitable[Rows]],
    *,
    title: str,
    first: int = 0,
    inputs: Mapping[str, Any] | None = None,
) -> StageKey:
    """Read candidates with one scorer into chunks that are aligned with those of the pool; returns `key`.

    Args:
        first: index of the first chunk that the scorer has not seen.
        inputs: what the rows depend on beside pool, scorer and engine.
    """
    chunks = pool.chunks()[first:]

    async def body(run: StageRun) -> dict[str, Any]:
        await serve(ctx, scorer.adapter)
        for chunk in chunks:
            if chunk.index not in run.done:
                rows = await read(pool.read(chunk))
                run.put(chunk.index, rows, rejected=sum(bool(row["error"]) for row in rows))
        return {"scorer": scorer.served}

    known = {"pool": pool.digest, "scorer": scorer.served, "engine": [ctx.info.device, ctx.info.dtype]}
    total = sum(chunk.size for chunk in chunks)
    await run_stage(ctx, key, {**known, **(inputs or {})}, body, title=f"{title} with {scorer.title}", total=total)
    return key


async def read_gold(
    ctx: JobContext,
    round: int,
    what: str,
    examples: Sequence[tuple[str, str]],
    scorer: Scorer,
    read: Callable[[Sequence[str]], Awaitable[Rows]],
    judge: Callable[[Rows], Evaluation],
    *,
    inputs: Mapping[str, Any] | None = None,
) -> Evaluation | None:
    """Read gold (text, label or answer) pairs with one scorer and judge all of them; None without any.

    Args:
        what: "eval" or "holdout"; names the stage together with the scorer.
        inputs: what the rows depend on beside examples and scorer.
    """
    if not examples:
        return None

    async def body(run: StageRun) -> dict[str, Any]:
        await serve(ctx, scorer.adapter)
        found: Rows = []
        for index, start in enumerate(range(0, len(examples), CHUNK_TEXTS)):
            if index in run.done:
                rows = ctx.store.get(run.done[index].ref)
            else:
                rows = await read([text for text, _ in examples[start : start + CHUNK_TEXTS]])
                run.put(index, rows)
            found += rows
        summary = judge(found)
        ctx.progress.advance(0, accuracy=summary.accuracy)
        return summary.model_dump(exclude_none=True)

    known = {"examples": [list(example) for example in examples], "scorer": scorer.served}
    key, title = gold_key(round, what, scorer), f"{what}: {'base model' if scorer.adapter is None else scorer.name}"
    result = await run_stage(ctx, key, {**known, **(inputs or {})}, body, title=title, total=len(examples))
    return Evaluation.model_validate(result)


def gold_key(round: int, what: str, scorer: Scorer) -> StageKey:
    """Where the rows of an evaluation are stored."""
    return StageKey(round, f"{what}-{scorer.name}")

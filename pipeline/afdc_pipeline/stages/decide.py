"""Turn stored log-probs into labels, and labels into D2.

The pool is streamed: a first pass puts the committee's mean distributions into a scratch file, the next reduce them to
one number a row and measure. Selection works on those columns, and a last pass writes the decision of each row.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afdc.errors import StorageError
from afdc_pipeline import scoring
from afdc_pipeline.context import JobContext
from afdc_pipeline.holdout import Fold
from afdc_pipeline.pool import Pool, PoolChunk
from afdc_pipeline.rows import Candidate
from afdc_pipeline.seams import FloatArray, StageKey
from afdc_pipeline.select.columns import REASONS, Columns, Selection
from afdc_pipeline.select.diversity import hashed_features
from afdc_pipeline.select.selector import EVERY, select
from afdc_pipeline.select.trust import Trust
from afdc_pipeline.stages.jury import Jury
from afdc_pipeline.stages.reading import Scorer
from afdc_pipeline.stages.runner import StageRun, run_stage
from afdc_pipeline.stages.score import read_logprobs
from afdc_pipeline.stopping import flip_rate

UNSEEN: dict[str, Any] = {"keep": False, "distribution": []}
MAX_RELIABILITY = 0.98  # a text whose every other label is ruled out could not be corrected any more
MEASURES = ("confidence", "margin", "entropy", "disagreement")


@dataclass(frozen=True)
class Decisions:
    """What a round decided: `key` is the stage of decision rows, the rest are its totals."""

    key: StageKey
    selected: int
    per_label: dict[str, int]
    reasons: dict[str, int]
    flip_rate: float | None
    agreement: float | None
    mean_confidence: float | None


@dataclass(frozen=True)
class Labelled:
    """A labeller and the stages that hold what it read; together they cover the pool."""

    scorer: Scorer
    keys: tuple[StageKey, ...]


async def decide(
    ctx: JobContext,
    round: int,
    pool: Pool,
    labelled: Sequence[Labelled],
    previous: Decisions | None,
    part: str = "",
    trust: Trust = EVERY,
    fold: Fold | None = None,
) -> Decisions:
    """Label D1 with the mean of the given labellers and select D2.

    Args:
        labelled: the labellers, each with its score stages.
        previous: the last round's decisions, for the flip rate; D1 may have grown since.
        part: names the stage where a pool that has grown is decided again; "" for the first time in a round.
        trust: which rows are sure enough.
        fold: what it leaves out is not chosen from, and the caps are those of its share.
    """
    key = StageKey(round, f"select{part}")

    async def body(run: StageRun) -> dict[str, Any]:
        view = LabelView(ctx, pool, labelled, fold)
        columns = view.columns()
        chosen = select(
            columns, ctx.selecting(fold), len(ctx.task.names), lambda rows: pool_features(pool, rows), trust
        )
        old = None if previous is None else _stored_labels(ctx, previous.key, pool.size)
        _write(run, view, columns, chosen)
        return _summary(ctx, columns, chosen, old, view.agreement)

    inputs = {
        "pool": pool.digest,
        "scores": [[k.round, k.stage] for one in labelled for k in one.keys],
        "previous": None if previous is None else previous.key.round,
        "trust": asdict(trust),
    }
    result = await run_stage(ctx, key, inputs, body, title=select_title(fold), total=pool.size)
    return Decisions(key=key, **result)


def select_title(fold: Fold | None) -> str:
    """What the progress display calls a selection."""
    return "select D2" if fold is None else f"select D2 without fold {fold.number}"


class LabelView:
    """The pool's label distributions under a committee.

    They are computed once, chunk by chunk, into a scratch file that is mapped and not held: float32 [n, L + 2], the
    common distribution, the members' disagreement, and whether their kinds are divided. What `fold` leaves out has
    none.
    """

    def __init__(self, ctx: JobContext, pool: Pool, labelled: Sequence[Labelled], fold: Fold | None = None) -> None:
        self._ctx = ctx
        self.pool = pool
        self._labels = {name: i for i, name in enumerate(ctx.task.names)}
        self._seeds = {seed.id: i for i, seed in enumerate(ctx.inputs.seeds)}
        self._intended = np.full(pool.size, -1, dtype=np.int32)
        self._table = self._fill(labelled, fold)
        self._weights = self._alignment() if ctx.config.select.align else None
        self.agreement = self._agreement()
        reliability = min(self.agreement or 0.0, MAX_RELIABILITY)
        self._reliability = reliability if ctx.config.select.combine and reliability else None

    def probs(self, chunk: PoolChunk) -> FloatArray:
        """Label distributions [n, L] of a chunk, aligned and combined where the config says so; NaN where rejected."""
        scored = self._scored(chunk)
        if self._reliability is None:
            return scored
        return scoring.agree(scored, self._written_for(chunk), self._reliability)

    def errors(self, chunk: PoolChunk) -> list[str]:
        """Why the engine refused each text of a chunk; "" where it did not."""
        rows = [self._ctx.store.get(refs[chunk.index]) for refs in self._refs]
        return [next((one["error"] for one in members if one["error"]), "") for members in zip(*rows, strict=True)]

    def columns(self) -> Columns:
        """One number a row and measure, for the whole pool."""
        parts = [self._chunk_columns(chunk) for chunk in self.pool.chunks()]
        return Columns.concat(parts or [Columns.from_probs(np.empty((0, len(self._labels))), [], [], [])])

    def _chunk_columns(self, chunk: PoolChunk) -> Columns:
        candidates = self.pool.read(chunk)
        return Columns.from_probs(
            self.probs(chunk),
            [c.id for c in candidates],
            self._written_for(chunk),
            [self._seeds.get(c.parent, -1) for c in candidates],
            self._rows(chunk)[:, -2].astype(np.float64),
            self._rows(chunk)[:, -1] > 0,
        )

    def _fill(self, labelled: Sequence[Labelled], fold: Fold | None) -> NDArray[np.float32]:
        chunks = self._ctx.ledger.chunks
        self._refs = [{c.index: c.ref for key in one.keys for c in chunks(key)} for one in labelled]
        temperatures = [one.scorer.temperature for one in labelled]
        juries = [Jury(self._ctx, one.scorer) for one in labelled]
        shape = (max(self.pool.size, 1), len(self._labels) + 2)
        table = map_scratch(self._ctx.layout.state, shape)
        for chunk in self.pool.chunks():
            rows = [read_logprobs(self._ctx.store.get(refs[chunk.index]), shape[1] - 2) for refs in self._refs]
            candidates = self.pool.read(chunk)
            unseen = np.array([fold is not None and fold.leaves_out(one) for one in candidates], dtype=np.bool_)
            for one in rows:
                one[unseen] = np.nan
            members = [scoring.normalise(one / t) for one, t in zip(rows, temperatures, strict=True)]
            where = slice(chunk.start, chunk.start + chunk.size)
            votes = [jury.votes(chunk, candidates) for jury in juries]
            witnesses = scoring.Witnesses.of(members, votes, [one.scorer.view for one in labelled])
            table[where, :-2] = witnesses.mean()
            table[where, -2] = scoring.disagreement(members)
            table[where, -1] = witnesses.divided()
            written_for = [self._labels.get(c.intended or "", -1) for c in candidates]
            self._intended[where] = np.where(unseen, -1, written_for)
        return table

    def _scored(self, chunk: PoolChunk) -> FloatArray:
        """The labellers' own distributions [n, L], aligned where the config says so."""
        mean = self._mean(chunk)
        return mean if self._weights is None else scoring.reweight(mean, self._weights)

    def _written_for(self, chunk: PoolChunk) -> NDArray[np.int32]:
        """Index of the label that each text was generated for, [n]; -1 for a real one."""
        return self._intended[chunk.start : chunk.start + chunk.size]

    def _agreement(self) -> float | None:
        """Share of the scored generated texts that the labellers give the label they were written for."""
        same = total = 0
        for chunk in self.pool.chunks():
            label, intended = scoring.labels(self._scored(chunk)), self._written_for(chunk)
            known = (label >= 0) & (intended >= 0)
            total += int(known.sum())
            same += int((label[known] == intended[known]).sum())
        return same / total if total else None

    def _rows(self, chunk: PoolChunk) -> NDArray[np.float32]:
        return self._table[chunk.start : chunk.start + chunk.size]

    def _mean(self, chunk: PoolChunk) -> FloatArray:
        return np.asarray(self._rows(chunk)[:, :-2], dtype=np.float64)

    def _alignment(self) -> FloatArray | None:
        """Weights that make the mean prediction over generated texts the mix of labels they were written for.

        Real texts are corrected by the same weights and not towards that mix: theirs is their own.
        """
        mix = np.bincount(self._intended[self._intended >= 0], minlength=len(self._labels)).astype(np.float64)
        return scoring.alignment_weights(self._generated, mix) if mix.any() else None

    def _generated(self) -> Iterator[FloatArray]:
        for chunk in self.pool.chunks():
            yield self._mean(chunk)[self._written_for(chunk) >= 0]


def pool_features(pool: Pool, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Character n-gram features [len(rows), d] of the texts at these positions of the pool, read when asked for."""
    wanted = set(rows.tolist())
    texts: dict[int, str] = {}
    for chunk in pool.chunks():
        here = wanted.intersection(range(chunk.start, chunk.start + chunk.size))
        if here:
            candidates = pool.read(chunk)
            texts.update({row: candidates[row - chunk.start].text for row in here})
    return hashed_features([texts[row] for row in rows.tolist()])


def map_scratch(folder: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
    """A float32 array in an unnamed file, its space reserved: a disk that is full says so now and not by a signal.

    Raises:
        StorageError: there is no room for it.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as scratch:
            os.posix_fallocate(scratch.fileno(), 0, shape[0] * shape[1] * 4)
            return np.memmap(scratch, np.float32, "r+", shape=shape)
    except OSError as exc:
        raise StorageError(
            f"cannot reserve scratch space in {folder}: {exc.strerror}", remedy="Free space, then run the command again"
        ) from exc


def _write(run: StageRun, view: LabelView, columns: Columns, chosen: Selection) -> None:
    for chunk in view.pool.chunks():
        if chunk.index not in run.done:
            probs, errors = view.probs(chunk), view.errors(chunk)
            rows = [_row(columns, chosen, chunk.start + i, probs[i], errors[i]) for i in range(chunk.size)]
            run.put(chunk.index, rows, kept=sum(row["keep"] for row in rows))


def _row(columns: Columns, chosen: Selection, at: int, probs: FloatArray, error: str) -> dict[str, Any]:
    return {
        "label": int(columns.label[at]),
        "keep": bool(chosen.keep[at]),
        "reason": REASONS[int(chosen.reason[at])],
        "weight": float(chosen.weight[at]),
        **{name: _number(getattr(columns, name)[at]) for name in MEASURES},
        "distribution": [] if columns.rejected[at] else probs.tolist(),
        "error": error,
    }


def _number(value: np.float32) -> float | None:
    return None if np.isnan(value) else float(value)


def _summary(
    ctx: JobContext, columns: Columns, chosen: Selection, old: NDArray[np.int32] | None, agreement: float | None
) -> dict[str, Any]:
    scored = ~columns.rejected
    counts = np.bincount(columns.label[chosen.keep], minlength=len(ctx.task.names))
    return {
        "selected": int(chosen.keep.sum()),
        "per_label": dict(zip(ctx.task.names, counts.tolist(), strict=True)),
        "reasons": chosen.counts(),
        "flip_rate": None if old is None else flip_rate(old, columns.label),
        "agreement": agreement,
        "mean_confidence": float(columns.confidence[scored].mean()) if scored.any() else None,
    }


def _stored_labels(ctx: JobContext, key: StageKey, size: int) -> NDArray[np.int32]:
    """The labels of an earlier decision; -1 where it had none, and for the texts that have come since."""
    labels = np.full(size, -1, np.int32)
    rows = (row for record in ctx.ledger.chunks(key) for row in ctx.store.get(record.ref))
    for at, row in enumerate(rows):
        labels[at] = row["label"]
    return labels


def decided_rows(ctx: JobContext, pool: Pool, key: StageKey) -> Iterator[tuple[Candidate, dict[str, Any]]]:
    """Every candidate with its decision, in the order of the pool; UNSEEN for texts that came after that decision."""
    refs = {record.index: record.ref for record in ctx.ledger.chunks(key)}
    for chunk in pool.chunks():
        seen = chunk.index in refs
        rows = ctx.store.get(refs[chunk.index]) if seen else [UNSEEN] * chunk.size
        yield from zip(pool.read(chunk), rows, strict=True)

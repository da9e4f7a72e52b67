"""Turn sampled answers into one answer a text, and texts into D2: `decide` for an open task.

All texts are of one class for the selection. Where `select.agreement` is on, a text whose samples do not agree counts
as one that was meant for another class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from afdc_pipeline.answers import SAME_F1, Verdict, judge, similarity
from afdc_pipeline.context import JobContext
from afdc_pipeline.holdout import Fold
from afdc_pipeline.pool import Pool, PoolChunk
from afdc_pipeline.seams import StageKey
from afdc_pipeline.select.columns import REASONS, Columns, Reason, Selection, tie_break
from afdc_pipeline.select.selector import EVERY, select
from afdc_pipeline.select.trust import Trust
from afdc_pipeline.stages.answer import read_samples
from afdc_pipeline.stages.decide import Decisions, Labelled, pool_features, select_title
from afdc_pipeline.stages.runner import StageRun, run_stage

MEASURES = ("confidence", "margin", "entropy", "disagreement", "agreement", "logprob")
SAMPLES_DISAGREE = "samples_disagree"
OPEN_REASONS = {**REASONS, Reason.DISAGREES_WITH_INTENDED.value: SAMPLES_DISAGREE}
ANSWERED, OTHER = 0, 1


async def settle(
    ctx: JobContext,
    round: int,
    pool: Pool,
    labelled: Sequence[Labelled],
    previous: Decisions | None,
    part: str = "",
    trust: Trust = EVERY,
    fold: Fold | None = None,
) -> Decisions:
    """Answer D1 with the labellers' samples and select D2; arguments as of `decide`."""
    key = StageKey(round, f"select{part}")
    answers = [one.keys for one in labelled]

    async def body(run: StageRun) -> dict[str, Any]:
        view = AnswerView(ctx, pool, answers, fold)
        columns = view.columns()
        chosen = select(columns, ctx.selecting(fold), 1, lambda rows: pool_features(pool, rows), trust)
        return _write(run, view, chosen, previous)

    inputs = {
        "pool": pool.digest,
        "answers": [[k.round, k.stage] for keys in answers for k in keys],
        "previous": None if previous is None else previous.key.round,
        "min_agreement": ctx.config.answer.min_agreement,
        "trust": asdict(trust),
    }

    result = await run_stage(ctx, key, inputs, body, title=select_title(fold), total=pool.size)
    return Decisions(key=key, **result)


class AnswerView:
    """The pool's answers under a committee, computed from the stored samples whenever a chunk is asked for.

    What a fold leaves out has none.
    """

    def __init__(
        self, ctx: JobContext, pool: Pool, answers: Sequence[Sequence[StageKey]], fold: Fold | None = None
    ) -> None:
        self._ctx = ctx
        self._fold = fold
        self.pool = pool
        self._seeds = {seed.id: i for i, seed in enumerate(ctx.inputs.seeds)}
        self._refs = [{c.index: c.ref for key in keys for c in ctx.ledger.chunks(key)} for keys in answers]

    def columns(self) -> Columns:
        """One number a row and measure, for the whole pool."""
        parts = [self._chunk_columns(chunk) for chunk in self.pool.chunks()]
        return Columns.concat(parts or [_columns([], [], [], 0.0)])

    def rows(self, chunk: PoolChunk, chosen: Selection) -> list[dict[str, Any]]:
        """The decision of each candidate of a chunk."""
        places = range(chunk.start, chunk.start + chunk.size)
        judged = self._judge(chunk)
        return [_row(verdict, error, chosen, at) for at, (verdict, error) in zip(places, judged, strict=True)]

    def _chunk_columns(self, chunk: PoolChunk) -> Columns:
        candidates = self.pool.read(chunk)
        parents = [self._seeds.get(one.parent, -1) for one in candidates]
        verdicts = [verdict for verdict, _ in self._judge(chunk)]
        return _columns(verdicts, [one.id for one in candidates], parents, self._ctx.config.answer.min_agreement)

    def _judge(self, chunk: PoolChunk) -> list[tuple[Verdict | None, str]]:
        """Verdict of each text, or None and why."""
        stored = [self._ctx.store.get(refs[chunk.index]) for refs in self._refs]
        judged = [_judge_rows(rows) for rows in zip(*stored, strict=True)]
        if self._fold is None:
            return judged
        pairs = zip(self.pool.read(chunk), judged, strict=True)
        return [(None, "") if self._fold.leaves_out(candidate) else one for candidate, one in pairs]


def _write(run: StageRun, view: AnswerView, chosen: Selection, previous: Decisions | None) -> dict[str, Any]:
    """Commit the decision of every row; returns the fields of `Decisions`."""
    ledger, store, totals = run.ctx.ledger, run.ctx.store, _Totals()
    old = {} if previous is None else {one.index: one.ref for one in ledger.chunks(previous.key)}
    for chunk in view.pool.chunks():
        rows = view.rows(chunk, chosen)
        before = store.get(old[chunk.index]) if chunk.index in old else []
        totals.add(rows, [row["answer"] for row in before])
        if chunk.index not in run.done:
            run.put(chunk.index, rows, kept=sum(row["keep"] for row in rows))
    return totals.summary(chosen)


def _judge_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[Verdict | None, str]:
    """A text that one labeller's engine refused is judged by the others; without any it has the first reason."""
    verdict = judge([read_samples(row) for row in rows])
    return verdict, "" if verdict else next((row["error"] for row in rows if row["error"]), "")


def _columns(
    verdicts: Sequence[Verdict | None], ids: Sequence[str], parents: Sequence[int], min_agreement: float
) -> Columns:
    agrees = [verdict is not None and verdict.agreement >= min_agreement for verdict in verdicts]

    def measure(name: str) -> Any:
        values = [getattr(verdict, name) if verdict else np.nan for verdict in verdicts]
        return np.asarray(values, dtype=np.float32)

    rejected = np.asarray([verdict is None for verdict in verdicts], dtype=np.bool_)
    return Columns(
        label=np.where(rejected, -1, ANSWERED).astype(np.int32),
        intended=np.where(agrees, ANSWERED, OTHER).astype(np.int32),
        confidence=measure("confidence"),
        margin=measure("margin"),
        entropy=measure("entropy"),
        disagreement=measure("disagreement"),
        parent=np.asarray(parents, dtype=np.int32),
        rejected=rejected,
        divided=np.zeros(len(verdicts), dtype=np.bool_),
        tie=tie_break(ids),
    )


def _row(verdict: Verdict | None, error: str, chosen: Selection, at: int) -> dict[str, Any]:
    return {
        "answer": verdict.answer if verdict else "",
        "keep": bool(chosen.keep[at]),
        "reason": OPEN_REASONS[int(chosen.reason[at])],
        "weight": float(chosen.weight[at]),
        **{name: getattr(verdict, name) if verdict else None for name in MEASURES},
        "error": error,
    }


class _Totals:
    """Sums over the rows of a decision, chunk by chunk."""

    def __init__(self) -> None:
        self._answered = self._seen_twice = self._flips = 0
        self._confidence = self._agreement = 0.0

    def add(self, rows: Sequence[Mapping[str, Any]], before: Sequence[str]) -> None:
        """Args: before: the answers of the decision before, in the same order; empty for texts that came since."""
        answered = [row for row in rows if row["answer"]]
        self._answered += len(answered)
        self._confidence += sum(row["confidence"] for row in answered)
        self._agreement += sum(row["agreement"] for row in answered)
        pairs = [(row["answer"], old) for row, old in zip(rows, before, strict=False) if row["answer"] and old]
        self._seen_twice += len(pairs)
        self._flips += sum(similarity(new, old) < SAME_F1 for new, old in pairs)

    def summary(self, chosen: Selection) -> dict[str, Any]:
        """The fields of `Decisions`."""
        reasons = {OPEN_REASONS[Reason[name.upper()].value]: count for name, count in chosen.counts().items()}
        return {
            "selected": int(chosen.keep.sum()),
            "per_label": {},
            "reasons": reasons,
            "flip_rate": self._flips / self._seen_twice if self._seen_twice else None,
            "agreement": self._agreement / self._answered if self._answered else None,
            "mean_confidence": self._confidence / self._answered if self._answered else None,
        }

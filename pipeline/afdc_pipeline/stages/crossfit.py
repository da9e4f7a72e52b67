"""Out-of-fold gold: adapters that leave a part of the seeds out, scored on that part.

With a handful of seeds a label none can be spared for good. k adapters, each trained as the round's own but without one
fold of the seeds and without the texts written from them, score every seed once by weights that never saw it (Stone
1974). That gates the round's adapter, gives its temperature, and each of the k labels the texts that it was trained
without beside it.

What a fold's adapter learns beside its seeds was chosen by labellers that never learnt the seeds left out, either
(`labelling.py`; docs/decisions/0016 says what the folds have in common all the same).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afdc.result import Evaluation
from afdc_pipeline import calibration, metrics, scoring
from afdc_pipeline.context import JobContext
from afdc_pipeline.holdout import Fold, cross_folds
from afdc_pipeline.pool import Pool
from afdc_pipeline.seams import FloatArray, StageKey
from afdc_pipeline.stages.evaluate import stored_logprobs
from afdc_pipeline.stages.gold import on_gold
from afdc_pipeline.stages.reading import Scorer, gold_key
from afdc_pipeline.stages.score import score_pool
from afdc_pipeline.stages.swap import accept_adapter

WHAT = "out-of-fold"
CALIBRATION_ROWS = 20_000
REAL_ROWS = 100
"""So many of the user's texts speak alone: the standard error of a share of them is at most 0.05."""
TAUGHT_ROWS = 10.0
"""What an adapter that learnt distributions knows of its doubt, in rows of gold: it holds the temperature near 1."""


@dataclass(frozen=True)
class _LeftOut:
    """What a fold says of texts that it was trained without.

    Attributes:
        logprobs: [m, n_labels], its scores of every text of D1 that it read.
        decided: int [m], the committee's labels of these.
        kept: bool [m], which of them are rows of D2.
        wanted: [n, n_labels], the committee's distributions of those.
        real: they are the user's own texts, and not generated ones.
    """

    logprobs: FloatArray
    decided: scoring.IntArray
    kept: NDArray[np.bool_]
    wanted: FloatArray
    real: bool


@dataclass(frozen=True)
class CrossFit:
    """What k adapters say of the seeds they did not see. `evaluation` is None where no seed could be left out.

    Attributes:
        scorers: the k adapters, without one that failed its verification, at the temperature for generated texts: it
            minimises the negative log-likelihood of the labels of seeds and of rows of D2 that they did not see (Guo et
            al. 2017).
        temperature: for real texts; 1 for an open task. Where labels were learnt it makes them as sure, on average, as
            they agree with the committee (`_as_sure_as_they_agree`). Where distributions were, the doubt has been
            learnt with them: it is that of the seeds, held near 1. In round 0 it is that of the seeds.
    """

    scorers: tuple[Scorer, ...] = ()
    evaluation: Evaluation | None = None
    temperature: float = 1.0


@dataclass(frozen=True)
class CommitteeLabels:
    """D1 and the committee's decisions on it, which a round's own adapter learns from."""

    pool: Pool
    decided: StageKey


async def cross_fit(
    ctx: JobContext,
    round: int,
    name: str,
    train: Callable[[str, Fold], Awaitable[str]],
    committee: CommitteeLabels | None = None,
    folds: Sequence[Fold] | None = None,
    one_in: int = 1,
) -> CrossFit:
    """Train k adapters of a round and score each on its fold.

    Args:
        name: of the round's adapters ("m", "r1"): the k are `name`-f0, `name`-f1 and so on.
        train: trains the adapter of that short name on a fold's rows; returns its full name.
        committee: whose labels they are compared with, to tell how sure they may be; None in round 0.
        folds: some of `seed_folds`; None for all of them.
        one_in: they say of one text in so many how sure they are; 0: of none.
    """
    parts = seed_folds(ctx) if folds is None else folds
    scorers: list[Scorer] = []
    scored: list[tuple[Fold, Scorer, Evaluation]] = []
    for fold in parts:
        short = f"{name}-f{fold.number}"
        adapter = await train(short, fold)
        scorer = Scorer(short, adapter, fold=fold, out_of_sample=True, born=round, one_in=one_in)
        if await accept_adapter(ctx, round, scorer.name, scorer.served):
            continue
        scorers.append(scorer)
        pairs = [(seed.text, seed.label) for seed in fold.held]
        found = await on_gold(ctx, round, WHAT, pairs, scorer)
        if found is not None:
            scored.append((fold, scorer, found))
    if not scored:
        return CrossFit(tuple(scorers))
    if ctx.task.is_open:
        return CrossFit(tuple(scorers), _pooled([one for _, _, one in scored]))
    unseen = await _left_out(ctx, round, scorers, committee) if committee and one_in else []
    taught = committee is not None and ctx.config.select.soft_targets
    return _calibrated(ctx, round, tuple(scorers), scored, unseen, taught=taught)


def seed_folds(ctx: JobContext) -> list[Fold]:
    """None where other seeds are held out."""
    k = 0 if ctx.inputs.holdout_seeds else ctx.config.loop.folds
    return cross_folds(ctx.inputs.training_seeds, k, ctx.config.seed)


def _calibrated(
    ctx: JobContext,
    round: int,
    scorers: tuple[Scorer, ...],
    scored: Sequence[tuple[Fold, Scorer, Evaluation]],
    unseen: Sequence[_LeftOut],
    *,
    taught: bool,
) -> CrossFit:
    """All folds' scores of seeds as one evaluation, at the temperature for real texts; `taught`: distributions."""
    logprobs = np.concatenate([stored_logprobs(ctx, gold_key(round, WHAT, scorer)) for _, scorer, _ in scored])
    gold = np.array(ctx.task.positions(seed.label for fold, _, _ in scored for seed in fold.held))
    rows = np.concatenate([logprobs, *(one.logprobs[one.kept] for one in unseen)])
    wanted = np.concatenate([scoring.one_hot(gold, logprobs.shape[1]), *(one.wanted for one in unseen)])
    labelling = reported = scoring.fit_temperature(rows, wanted)
    if taught:
        reported = scoring.fit_temperature(logprobs, gold, prior_rows=TAUGHT_ROWS)
    elif unseen:
        reported = _as_sure_as_they_agree(unseen)
    found = metrics.evaluate(scoring.normalise(logprobs / reported), gold)
    return CrossFit(tuple(replace(one, temperature=labelling) for one in scorers), found, reported)


def _as_sure_as_they_agree(unseen: Sequence[_LeftOut]) -> float:
    """Temperature at which folds are as sure of texts, on average, as they agree with the committee over the same ones.

    The user's own texts tell it alone, where there are enough of them; otherwise all of D1 that the folds read.
    """
    own = [one for one in unseen if one.real]
    told = own if sum(len(one.decided) for one in own) >= REAL_ROWS else unseen
    logprobs, decided = np.concatenate([one.logprobs for one in told]), np.concatenate([one.decided for one in told])
    return calibration.matched_temperature(logprobs, calibration.agreement(scoring.labels(logprobs), decided))


async def _left_out(
    ctx: JobContext, round: int, scorers: Sequence[Scorer], committee: CommitteeLabels
) -> list[_LeftOut]:
    """What each fold says of the texts that it was trained without, in parts that are not empty.

    A handful of seeds tells little of how sure is too sure. Hundreds of texts with the committee's labels say more.
    Some thousand rows of each kind of text are enough.
    """
    keys = [await score_pool(ctx, round, committee.pool, scorer) for scorer in scorers]
    refs = [{record.index: record.ref for record in ctx.ledger.chunks(key)} for key in keys]
    found: list[_LeftOut] = []
    taken = {False: 0, True: 0}  # rows of D2 that were generated, and the user's own
    decided = {record.index: record.ref for record in ctx.ledger.chunks(committee.decided)}
    for chunk in committee.pool.chunks():
        if chunk.index in decided and taken[chunk.real] < CALIBRATION_ROWS:
            rows = ctx.store.get(decided[chunk.index])
            parts = [_compared(ctx, rows, ctx.store.get(stored[chunk.index]), chunk.real) for stored in refs]
            found += [part for part in parts if len(part.decided)]
            taken[chunk.real] += sum(len(part.wanted) for part in parts)
    return found


def _compared(
    ctx: JobContext, decided: Sequence[dict[str, Any]], scored: Sequence[dict[str, Any]], real: bool
) -> _LeftOut:
    both = zip(decided, scored, strict=True)
    pairs = [(one, two["logprobs"]) for one, two in both if one["distribution"] and two["logprobs"]]
    shape = (len(pairs), len(ctx.task.names))
    kept = np.array([one["keep"] for one, _ in pairs], dtype=np.bool_)
    wanted = np.array([one["distribution"] for one, _ in pairs]).reshape(shape)
    logprobs = np.array([logprobs for _, logprobs in pairs]).reshape(shape)
    labels = np.array([one["label"] for one, _ in pairs], dtype=np.int32)
    return _LeftOut(logprobs, labels, kept, wanted[kept], real)


def _pooled(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Means of open evaluations, weighted by their examples."""
    sizes = [one.n for one in evaluations]
    return Evaluation(
        accuracy=float(np.average([one.accuracy for one in evaluations], weights=sizes)),
        n=sum(sizes),
        token_f1=float(np.average([one.score for one in evaluations], weights=sizes)),
    )

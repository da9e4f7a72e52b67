"""Out-of-fold gold: adapters that leave a part of the seeds out, scored on that part.

With a handful of seeds a label none can be spared for good. k adapters, each trained as the round's own but without one
fold of the seeds and without the texts written from them, score every seed once by weights that never saw it (Stone
1974). That gates the round's adapter, gives its temperature, and each of the k labels the texts that it was trained
without beside it.

The labels of the texts left in come from a committee that knows the whole seed set: what is out of fold are the rows
trained on, not all they were chosen by.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from afdc.result import Evaluation
from afdc_pipeline import metrics, scoring
from afdc_pipeline.context import JobContext
from afdc_pipeline.holdout import Fold, cross_folds
from afdc_pipeline.seams import StageKey
from afdc_pipeline.stages.evaluate import evaluate, stored_logprobs
from afdc_pipeline.stages.grade import grade
from afdc_pipeline.stages.reading import Scorer, gold_key
from afdc_pipeline.stages.swap import accept_adapter

WHAT = "out-of-fold"


@dataclass(frozen=True)
class CrossFit:
    """What k adapters say of the seeds they did not see. `evaluation` is None where no seed could be left out.

    Attributes:
        scorers: the k adapters, without one that failed its verification.
        temperature: minimises the negative log-likelihood of their labels (Guo et al. 2017), but is not lower than in
            round 0; 1 for an open task.
    """

    scorers: tuple[Scorer, ...] = ()
    evaluation: Evaluation | None = None
    temperature: float = 1.0


async def cross_fit(
    ctx: JobContext,
    round: int,
    name: str,
    train: Callable[[str, int, Fold], Awaitable[str]],
    trained_on: StageKey | None = None,
    coldest: float = 0.0,
) -> CrossFit:
    """Train k adapters of a round and score each on its fold.

    Args:
        coldest: lowest temperature. Round 0 is the last whose folds know nothing at all of the seeds left out.
        name: of the round's adapters ("m", "r1"): the k are `name`-f0, `name`-f1 and so on.
        train: trains the adapter of that short name and fold number on a fold's rows; returns its full name.
        trained_on: the decisions whose rows they are trained on; None for seeds alone.
    """
    parts = seed_folds(ctx)
    scorers: list[Scorer] = []
    scored: list[tuple[Fold, Scorer, Evaluation]] = []
    for number, fold in enumerate(parts):
        short = f"{name}-f{number}"
        scorer = Scorer(short, await train(short, number, fold), trained_on, fold, out_of_sample=True, born=round)
        if await accept_adapter(ctx, round, scorer.name, scorer.served):
            continue
        scorers.append(scorer)
        pairs = [(seed.text, seed.label) for seed in fold.held]
        found = await (grade if ctx.task.is_open else evaluate)(ctx, round, WHAT, pairs, scorer)
        if found is not None:
            scored.append((fold, scorer, found))
    if not scored:
        return CrossFit(tuple(scorers))
    if ctx.task.is_open:
        return CrossFit(tuple(scorers), _pooled([one for _, _, one in scored]))
    return _calibrated(ctx, round, tuple(scorers), scored, coldest)


def seed_folds(ctx: JobContext) -> list[Fold]:
    """None where other seeds are held out."""
    k = 0 if ctx.inputs.holdout_seeds else ctx.config.loop.folds
    return cross_folds(ctx.inputs.training_seeds, k, ctx.config.seed)


def _calibrated(
    ctx: JobContext,
    round: int,
    scorers: tuple[Scorer, ...],
    scored: Sequence[tuple[Fold, Scorer, Evaluation]],
    coldest: float,
) -> CrossFit:
    """All folds' scores as one evaluation, at the temperature that fits them."""
    logprobs = np.concatenate([stored_logprobs(ctx, gold_key(round, WHAT, scorer)) for _, scorer, _ in scored])
    gold = np.array(ctx.task.positions(seed.label for fold, _, _ in scored for seed in fold.held))
    temperature = max(scoring.fit_temperature(logprobs, gold), coldest)
    found = metrics.evaluate(scoring.normalise(logprobs / temperature), gold)
    return CrossFit(tuple(replace(one, temperature=temperature) for one in scorers), found, temperature)


def _pooled(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Means of open evaluations, weighted by their examples."""
    sizes = [one.n for one in evaluations]
    return Evaluation(
        accuracy=float(np.average([one.accuracy for one in evaluations], weights=sizes)),
        n=sum(sizes),
        token_f1=float(np.average([one.score for one in evaluations], weights=sizes)),
    )

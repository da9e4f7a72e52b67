"""The adapter that is handed out: the mean of the rounds' adapters (Wortsman et al. 2022, arXiv 2203.05482).

Adapters of two rounds are fitted to much the same rows from the same base, and err apart. Their mean costs no training
and one adapter's time to serve. What it is worth on gold that it has not seen is told as for a round: the adapters that
left a fold of the seeds out are averaged over the same rounds, and each mean is scored on its fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from afdc.result import Evaluation
from afdc_pipeline import gate
from afdc_pipeline.context import JobContext
from afdc_pipeline.holdout import Fold
from afdc_pipeline.stages.crossfit import CommitteeLabels, CrossFit, cross_fit, seed_folds
from afdc_pipeline.stages.fit import average_adapters
from afdc_pipeline.stages.gold import on_holdout
from afdc_pipeline.stages.reading import Scorer
from afdc_pipeline.stages.swap import accept_adapter

AVERAGE = "avg"
CALIBRATION_TEXTS = 512
"""Of D1, scored for the mean's temperature: one number needs no more, and the mean labels none of them."""


@dataclass(frozen=True)
class Trained:
    """The adapter of a round that the engine took, and what the gate said of it.

    Attributes:
        folds: the adapters beside it that each leave a fold of the seeds out.
    """

    scorer: Scorer
    folds: tuple[Scorer, ...] = ()
    passed: bool = True


@dataclass(frozen=True)
class Averaged:
    """`scorer` is None where the engine refused the mean, and `refused` says why. `holdout`: on gold it never saw."""

    scorer: Scorer | None
    holdout: Evaluation | None = None
    refused: str = ""


def mixtures(rounds: Sequence[Trained]) -> list[list[Trained]]:
    """What may be averaged, to be tried in turn: all rounds, then those alone that passed the gate.

    A round that lost on a handful of seeds may still be worth having in the mean, which has to pass the gate itself.
    """
    passed = [one for one in rounds if one.passed]
    tried = [list(rounds)] if len(passed) < len(rounds) else []
    return [rounds for rounds in [*tried, passed] if len(rounds) > 1]


async def average_rounds(
    ctx: JobContext, round: int, name: str, rounds: Sequence[Trained], committee: CommitteeLabels
) -> Averaged:
    """Publish, verify and load the mean of at least two rounds' adapters, at a temperature of its own.

    Without folds to score it has the temperature of the last of them.

    Args:
        round: the last one of the job, which the mean belongs to.
        name: short name of the mean, which names its stages.
        committee: the labels of D1 that the temperature is fitted on.
    """
    last = rounds[-1].scorer
    fitted = await _cross_fit(ctx, round, name, rounds, committee)
    temperature = last.temperature if fitted.evaluation is None else fitted.temperature
    adapter = await average_adapters(ctx, round, name, [one.scorer.served for one in rounds], temperature)
    refused = await accept_adapter(ctx, round, name, adapter)
    if refused:
        return Averaged(None, refused=refused)
    scorer = replace(last, name=name, adapter=adapter, temperature=temperature, born=round)
    return Averaged(scorer, fitted.evaluation or await on_holdout(ctx, round, scorer))


async def _cross_fit(
    ctx: JobContext, round: int, name: str, rounds: Sequence[Trained], committee: CommitteeLabels
) -> CrossFit:
    """Means of the folds' adapters, of the folds that every round has one of.

    They label nothing: they read texts of D1 only where the reported temperature rests on these.
    """
    served = [{one.fold: one.served for one in trained.folds} for trained in rounds]

    async def train(short: str, fold: Fold) -> str:
        return await average_adapters(ctx, round, short, [one[fold] for one in served])

    folds = [fold for fold in seed_folds(ctx) if all(fold in one for one in served)]
    step = 0 if ctx.config.select.soft_targets else sample_step(committee.pool.size)
    return await cross_fit(ctx, round, name, train, committee, folds, step)


def sample_step(texts: int) -> int:
    """One text of how many is scored for the temperature."""
    return max(texts // CALIBRATION_TEXTS, 1)


def describe(rounds: Sequence[Trained], mean: Averaged, *, passed: bool) -> str:
    """What became of a mean, for the report."""
    what = f"mean of {listed([one.scorer.name for one in rounds])}"
    if mean.scorer is None:
        return f"the {what} was not activated: {mean.refused}"
    share = f" ({gate.describe(mean.holdout)})" if mean.holdout else ""
    if not passed:
        return f"the {what} is worse on held-out gold{share} and is not handed out"
    return f"handed out: {mean.scorer.served}, {what}{share}"


def listed(names: Sequence[str]) -> str:
    """For example "r1, r2 and r4"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))

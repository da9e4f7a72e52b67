"""Who labels D1 in a round, and the D2 that follows: of the committee, and of each fold by itself.

The committee's labellers know all seeds. An adapter that leaves a fold of the seeds out, but learns from labels that
the committee chose, has heard of the seeds that it is asked about: it tells them too well, and so do the gate and the
confidence that rest on it. So every fold runs a small loop of its own, whose labellers never learnt its held seeds:

    D2_f <- select(the fold's adapters and encoder label the texts that the fold keeps)
    M_t,f <- fit(base, D0 without the fold + D2_f)

That is nested cross-validation (Varma and Simon 2006, doi 10.1186/1471-2105-7-91): the choice of labels is part of the
training, and is done again without what is held out. No adapter is trained for it that was not there before.
docs/decisions/0016 says what the folds still have in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from afdc_pipeline.context import JobContext
from afdc_pipeline.holdout import Fold
from afdc_pipeline.seams import StageKey
from afdc_pipeline.select.selector import EVERY
from afdc_pipeline.select.trust import Trust
from afdc_pipeline.stages.answer import answer_pool
from afdc_pipeline.stages.crossfit import seed_folds
from afdc_pipeline.stages.decide import Decisions, Labelled, decide
from afdc_pipeline.stages.encode import encode_pool, encoder_of, encoder_of_fold
from afdc_pipeline.stages.reading import Scorer
from afdc_pipeline.stages.score import score_pool
from afdc_pipeline.stages.settle import settle
from afdc_pipeline.state import BASE, LoopState, ScoredPool


def add_encoder(ctx: JobContext, state: LoopState, round: int, previous: Decisions | None) -> None:
    """The round's encoder labels beside the adapters. It learns from the rows that they learnt from."""
    if ctx.labelling_encoder is not None:
        state.labellers.append(encoder_of(ctx, ctx.labelling_encoder, round, previous.key if previous else None))


def begin_folds(ctx: JobContext, state: LoopState, adapters: Sequence[Scorer]) -> None:
    """The first labellers of every fold: its adapter of round 0, or the base model, and an encoder of its seeds alone.

    Args:
        adapters: those of round 0 that leave a fold out. A fold whose adapter the engine refused is given up: its
            encoder alone would let every text pass.
    """
    for fold in seed_folds(ctx):
        own = [_inside(ctx, one, None) for one in adapters if one.fold == fold] if ctx.config.loop.members else [BASE]
        if not own:
            ctx.progress.note(f"fold {fold.number} has no adapter: its {len(fold.held)} seeds gate no later round")
            continue
        if ctx.labelling_encoder is not None:
            own.append(encoder_of_fold(ctx, ctx.labelling_encoder, fold))
        state.fold_labellers[fold] = own


def extend_folds(
    ctx: JobContext, state: LoopState, adapters: Sequence[Scorer], of_folds: Mapping[Fold, Decisions]
) -> None:
    """A round's adapters join the labellers of their folds, or take their place where only the last one labels."""
    for one in adapters:
        if one.fold is not None:
            own, new = state.fold_labellers[one.fold], _inside(ctx, one, of_folds[one.fold].key)
            stay = [old for old in own if old.view == "encoder" or (ctx.config.loop.ensemble and old != BASE)]
            state.fold_labellers[one.fold] = [*stay, new]


def _inside(ctx: JobContext, adapter: Scorer, learnt: StageKey | None) -> Scorer:
    """An adapter as a labeller of what its fold keeps. The samples of an open task are of all texts already.

    Args:
        learnt: the decisions that it was trained on beside the seeds.
    """
    name = adapter.name if ctx.task.is_open else f"{adapter.name}-in"
    return replace(adapter, name=name, inside=True, trained_on=learnt, out_of_sample=False)


async def decide_folds(ctx: JobContext, state: LoopState, round: int) -> dict[Fold, Decisions]:
    """What the adapter of every fold learns in a round."""
    return {
        fold: await decide_by(ctx, state, round, labellers, None, f"-f{fold.number}", fold=fold)
        for fold, labellers in state.fold_labellers.items()
    }


async def decide_by(
    ctx: JobContext,
    state: LoopState,
    round: int,
    labellers: Sequence[Scorer],
    previous: Decisions | None,
    part: str = "",
    trust: Trust = EVERY,
    fold: Fold | None = None,
) -> Decisions:
    """Score what the labellers have not seen, or answer it where the task is open, and select.

    Arguments are as of `decide`.
    """
    choose, chunks = settle if ctx.task.is_open else decide, len(state.pool.chunks())
    for scorer in labellers:
        old = state.scored.get(scorer.name)
        if old is None:
            key = await _read_pool(ctx, state, round, scorer)
            state.scored[scorer.name] = ScoredPool((key,), chunks)
        elif old.chunks < chunks:
            key = await _read_pool(ctx, state, round, scorer, part, old.chunks)
            state.scored[scorer.name] = ScoredPool((*old.keys, key), chunks)
    labelled = [Labelled(scorer, state.scored[scorer.name].keys) for scorer in labellers]
    return await choose(ctx, round, state.pool, labelled, previous, part, trust, fold)


async def _read_pool(
    ctx: JobContext, state: LoopState, round: int, scorer: Scorer, part: str = "", first: int = 0
) -> StageKey:
    """What one labeller says of the pool, from chunk `first` on."""
    if scorer.view == "encoder" and ctx.labelling_encoder is not None:
        known = state.encoders.get(0)
        found = await encode_pool(ctx, ctx.labelling_encoder, round, state.pool, scorer, known, part, first)
        if scorer.fold is None:
            state.encoders[scorer.born] = found
        return found.key
    label_pool = answer_pool if ctx.task.is_open else score_pool
    return await label_pool(ctx, round, state.pool, scorer, part, first)

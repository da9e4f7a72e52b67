"""The algorithm, top to bottom (docs/algorithm.md has the same steps with their formulas).

D1 <- augment(D0, R rounds x K variants) + unlabelled texts
M0 <- adapters fitted on D0 (none in the paper preset: the base model scores first)
D2 <- select(score(D1)); while |D2| < target: D1 <- D1 + one more augment round; D2 <- select(score(D1))
T times: M_t <- fit(base, D0 + D2); gate; D2 <- select(relabel(D1)), as above
M* <- mean of the weights of the M_t, where it passes the gate itself
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from afdc.result import Evaluation, RoundResult
from afdc_pipeline import gate, growth, metrics, stopping
from afdc_pipeline.context import JobContext
from afdc_pipeline.labelling import add_encoder, begin_folds, decide_by, decide_folds, extend_folds
from afdc_pipeline.seams import StageKey
from afdc_pipeline.select.trust import Trust
from afdc_pipeline.spending import spent, stage_seconds
from afdc_pipeline.stages.augment import SeenTexts, build_pool, extend_pool
from afdc_pipeline.stages.average import AVERAGE, Trained, average_rounds, describe, mixtures
from afdc_pipeline.stages.crossfit import CommitteeLabels, CrossFit, cross_fit
from afdc_pipeline.stages.decide import decided_rows
from afdc_pipeline.stages.fit import train_member, train_round, train_round_fold, train_seed_fold
from afdc_pipeline.stages.gold import on_eval, on_holdout
from afdc_pipeline.stages.grow import end_of_growth
from afdc_pipeline.stages.reading import Scorer
from afdc_pipeline.stages.runner import StageRun, run_stage
from afdc_pipeline.stages.swap import accept_adapter
from afdc_pipeline.state import BASE, LoopState


async def run_loop(ctx: JobContext, history: list[RoundResult] | None = None) -> LoopState:
    """Run the whole job, skipping what the ledger already holds, and return where it ended.

    Args:
        history: filled round by round, so that the caller has the finished rounds when a later one fails.
    """
    seen = SeenTexts(ctx)
    try:
        state = LoopState(await build_pool(ctx, seen), seen, history=[] if history is None else history)
        if ctx.config.select.target_rows is None:
            seen.close()  # D1 is whole: nothing is compared any more
        return await _run(ctx, state)
    finally:
        seen.close()


async def _run(ctx: JobContext, state: LoopState) -> LoopState:
    base = state.best_eval = await on_eval(ctx, 0, BASE)
    seeds_only = await _round_zero(ctx, state)
    grown = await _label(ctx, state, 0)
    await _record(ctx, state, 0, seeds_only[0] if seeds_only else None, holdout=state.best_holdout, note=grown)
    while not state.stop_reason:
        await _self_train(ctx, state, len(state.history))
    await _average(ctx, state)
    await _hand_out(ctx, state)
    gold, final = len(ctx.inputs.eval), state.best_eval
    state.eval = metrics.summarise_eval(base, seeds_only, final, gold, is_open=ctx.task.is_open)
    return state


async def _average(ctx: JobContext, state: LoopState) -> None:
    """M* becomes the mean of the rounds' adapters where the gate lets it through. It labels nothing."""
    if not ctx.config.loop.average:
        return
    last, committee = state.history[-1], CommitteeLabels(state.pool, state.decisions[-1].key)
    notes = [last.note]
    for number, rounds in enumerate(mixtures(state.trained)):
        mean = await average_rounds(ctx, last.round, f"{AVERAGE}{number or ''}", rounds, committee)
        passed = gate.passes(mean.holdout, gate.best_of(one.holdout for one in state.history))
        notes.append(describe(rounds, mean, passed=passed))
        ctx.progress.note(notes[-1])
        if mean.scorer is not None and passed:
            state.best, state.best_eval = mean.scorer, await on_eval(ctx, last.round, mean.scorer)
            state.best_holdout = mean.holdout or state.best_holdout
            break
    note = "; ".join(filter(None, notes))
    state.history[-1] = last.model_copy(update={"note": note, "seconds": stage_seconds(ctx, last.round)})


async def _hand_out(ctx: JobContext, state: LoopState) -> None:
    """The D2 of the data set: that of the last round without its doubtful rows. Training does better with them.

    A job that is to have so many rows gets them.
    """
    config = ctx.config.select
    if not config.trust or config.target_rows is not None or state.best_holdout is None:
        return
    last, previous = state.history[-1], state.decisions[-2] if len(state.decisions) > 1 else None
    trust = Trust(1 - state.best_holdout.accuracy, 0.0 if ctx.task.is_open else config.precision)
    state.decisions[-1] = await decide_by(ctx, state, last.round, state.labellers, previous, "-out", trust)
    counts = {"selected": state.decisions[-1].selected, "per_label": state.decisions[-1].per_label}
    state.history[-1] = last.model_copy(update=counts)


async def _round_zero(ctx: JobContext, state: LoopState) -> list[Evaluation]:
    """Adapters on D0 alone: the first labellers, and the baseline that the loop has to beat.

    Returns the evaluation of each: the training seed alone moves a seeds-only adapter by several points, so that one of
    them would be a baseline of luck. Empty without --eval.
    """
    count = ctx.config.loop.members or int(bool(ctx.inputs.eval))
    fitted = CrossFit()
    if ctx.config.loop.members:
        fitted = await cross_fit(ctx, 0, "m", partial(train_seed_fold, ctx))
    members = [await _member(ctx, number, fitted.temperature) for number in range(count)]
    if ctx.config.loop.members:
        state.labellers, state.best = [*members, *fitted.scorers], members[0]
        state.best_holdout = fitted.evaluation or await on_holdout(ctx, 0, state.best)
    else:
        state.labellers = [BASE]
    begin_folds(ctx, state, fitted.scorers)
    evaluations = [await on_eval(ctx, 0, member) for member in members]
    if ctx.config.loop.members:
        state.best_eval = evaluations[0]
    return [one for one in evaluations if one is not None]


async def _member(ctx: JobContext, number: int, temperature: float) -> Scorer:
    """A seeds-only adapter. Raises AdapterError when it fails verification: there is nothing to fall back to."""
    scorer = Scorer(f"m{number}", await train_member(ctx, number, temperature), temperature=temperature)
    await accept_adapter(ctx, 0, scorer.name, scorer.served, needed=True)
    return scorer


async def _self_train(ctx: JobContext, state: LoopState, round: int) -> None:
    """One round: fit on D0 and D2, verify and activate, gate, relabel D1, rebuild D2."""
    previous = None if state.best == BASE else state.best.adapter
    committee, of_folds = CommitteeLabels(state.pool, state.decisions[-1].key), await decide_folds(ctx, state, round)
    train = partial(train_round_fold, ctx, round, state.pool, of_folds)
    fitted = await cross_fit(ctx, round, f"r{round}", train, committee, list(of_folds))
    adapter = await train_round(ctx, round, state.pool, state.decisions[-1], previous, fitted.temperature)
    scorer = Scorer(f"r{round}", adapter, state.decisions[-1].key, temperature=fitted.temperature, born=round)
    refused = await accept_adapter(ctx, round, scorer.name, scorer.served)
    if refused:
        state.stop_reason = f"adapter {scorer.served} was not activated: {refused}"
        ctx.progress.note(state.stop_reason)
        return
    holdout = fitted.evaluation or await on_holdout(ctx, round, scorer)
    to_beat = gate.best_of(one.holdout for one in state.history)
    accepted = gate.passes(holdout, to_beat)
    evaluation = await on_eval(ctx, round, scorer)
    state.trained.append(Trained(scorer, fitted.scorers, accepted))
    if accepted:
        _activate(ctx, state, scorer, fitted.scorers)
        extend_folds(ctx, state, fitted.scorers, of_folds)
        state.best_holdout, state.best_eval = holdout, evaluation
        note = "; ".join(filter(None, [gate.remark(holdout, to_beat), await _label(ctx, state, round)]))
    else:  # the same labellers would decide the same again
        state.decisions.append(replace(state.decisions[-1], flip_rate=0.0))
        note = "worse on held-out gold: the adapter before it is kept"
    await _record(ctx, state, round, evaluation, scorer=scorer, holdout=holdout, activated=accepted, note=note)


def _activate(ctx: JobContext, state: LoopState, scorer: Scorer, beside: Sequence[Scorer]) -> None:
    state.best = scorer
    if ctx.config.loop.ensemble:
        state.labellers = [*(s for s in state.labellers if s != BASE), scorer, *beside]
    else:
        state.labellers = [scorer]


async def _label(ctx: JobContext, state: LoopState, round: int) -> str:
    """D2 of the round. Returns what was drawn beyond the plan to reach the target, and why it ended; "" for nothing."""
    previous = state.decisions[-1] if state.decisions else None
    add_encoder(ctx, state, round, previous)
    state.decisions.append(await decide_by(ctx, state, round, state.labellers, previous))
    target = ctx.config.select.target_rows
    if target is None or state.decisions[-1].selected >= target:
        return ""
    begun, before = state.decisions[-1].selected, state.extra
    state.first_selected = _drawn_rows(ctx, state) if state.first_selected is None else state.first_selected
    gained: int | None = None
    while not (reason := await end_of_growth(ctx, round, _standing(ctx, state, gained))):
        state.extra += 1
        number = ctx.config.augment.rounds + state.extra
        state.pool = await extend_pool(ctx, state.seen, number)
        selected = state.decisions[-1].selected
        state.decisions[-1] = await decide_by(ctx, state, round, state.labellers, previous, f"-a{number}")
        gained = state.decisions[-1].selected - selected
    note = growth.describe(begun, state.extra - before, state.decisions[-1].selected, target, reason)
    ctx.progress.note(note)
    return note


def _drawn_rows(ctx: JobContext, state: LoopState) -> int:
    """Rows of D2 that were generated: real texts come once, and tell nothing of what a further round yields."""
    decisions = state.decisions[-1]
    if ctx.inputs.unlabeled is None:
        return decisions.selected
    rows = decided_rows(ctx, state.pool, decisions.key)
    return sum(row["keep"] and candidate.source == "generated" for candidate, row in rows)


def _standing(ctx: JobContext, state: LoopState, gained: int | None) -> growth.Standing:
    return growth.Standing(
        selected=state.decisions[-1].selected,
        first=state.first_selected or 0,
        extra=state.extra,
        drawn=ctx.draws_a_round,
        gained=gained,
    )


async def _record(
    ctx: JobContext,
    state: LoopState,
    round: int,
    evaluation: Evaluation | None,
    *,
    scorer: Scorer | None = None,
    holdout: Evaluation | None = None,
    activated: bool = True,
    note: str = "",
) -> None:
    """Add the round to the history and ask the stopping rules."""
    decisions, encoded = state.decisions[-1], state.encoders.get(round)
    result = RoundResult(
        round=round,
        candidates=state.pool.size,
        selected=decisions.selected,
        per_label=decisions.per_label,
        flip_rate=decisions.flip_rate,
        agreement=decisions.agreement,
        mean_confidence=decisions.mean_confidence,
        holdout=holdout,
        encoder=encoded.evaluation if encoded else None,
        encoder_tuned=encoded.tuned if encoded else None,
        eval=evaluation,
        adapter=(scorer or state.best).served,
        activated=activated,
        note=note,
        seconds=stage_seconds(ctx, round),
    )
    state.history.append(result)
    state.stop_reason = await _stop_reason(ctx, state)


async def _stop_reason(ctx: JobContext, state: LoopState) -> str:
    """Ask once a round and keep the answer: a resumed run has spent more and must not stop elsewhere."""

    async def body(_run: StageRun) -> dict[str, str]:
        return {"reason": stopping.stop_reason(state.history, ctx.config, spent(ctx)) or ""}

    last = state.history[-1]
    inputs = {"adapter": last.adapter, "selected": last.selected}
    result = await run_stage(ctx, StageKey(last.round, "stop"), inputs, body, title="")
    return str(result["reason"])

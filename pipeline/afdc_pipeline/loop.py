"""The algorithm, top to bottom (docs/algorithm.md has the same steps with their formulas).

D1 <- augment(D0, R rounds x K variants) + unlabelled texts
M0 <- adapters fitted on D0 (none in the paper preset: the base model scores first)
D2 <- select(score(D1))
T times: M_t <- fit(base, D0 + D2); gate; D2 <- select(relabel(D1))
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from statistics import mean

from afdc.errors import AdapterError
from afdc.result import EvalSummary, Evaluation, RoundResult
from afdc_pipeline import stopping
from afdc_pipeline.context import JobContext
from afdc_pipeline.pool import Pool
from afdc_pipeline.seams import StageKey
from afdc_pipeline.stages.augment import build_pool
from afdc_pipeline.stages.decide import Decisions, decide
from afdc_pipeline.stages.evaluate import evaluate
from afdc_pipeline.stages.fit import train_member, train_round
from afdc_pipeline.stages.runner import StageRun, run_stage
from afdc_pipeline.stages.score import Scorer, score_pool
from afdc_pipeline.stages.swap import accept_adapter

BASE = Scorer("base")
AUGMENT_STAGES = ("generate", "filter", "unlabeled")


@dataclass
class LoopState:
    """Where the loop stands. `best` is M* so far; `labellers` are those whose mean labels D1."""

    pool: Pool
    labellers: list[Scorer] = field(default_factory=list)
    score_keys: dict[str, StageKey] = field(default_factory=dict)
    best: Scorer = BASE
    best_holdout: Evaluation | None = None
    history: list[RoundResult] = field(default_factory=list)
    decisions: list[Decisions] = field(default_factory=list)
    eval: EvalSummary = field(default_factory=EvalSummary)
    stop_reason: str = ""


async def run_loop(ctx: JobContext, history: list[RoundResult] | None = None) -> LoopState:
    """Run the whole job, skipping what the ledger already holds, and return where it ended.

    Args:
        history: filled round by round, so that the caller has the finished rounds when a later one fails.
    """
    pool = await build_pool(ctx)
    state = LoopState(pool, history=[] if history is None else history)
    base = await _eval(ctx, 0, BASE)
    seeds_only = await _round_zero(ctx, state)
    await _label(ctx, state, 0)
    await _record(ctx, state, 0, seeds_only[0] if seeds_only else None, holdout=state.best_holdout)
    while not state.stop_reason:
        await _self_train(ctx, state, len(state.history))
    state.eval = _eval_summary(ctx, state, base, seeds_only)
    return state


async def _round_zero(ctx: JobContext, state: LoopState) -> list[Evaluation]:
    """Adapters on D0 alone: the first labellers, and the baseline that the loop has to beat.

    Returns the evaluation of each: the training seed alone moves a seeds-only adapter by several points, so that one of
    them would be a baseline of luck. Empty without --eval.
    """
    count = ctx.config.loop.members or int(bool(ctx.inputs.eval))
    members = [await _member(ctx, number) for number in range(count)]
    if ctx.config.loop.members:
        state.labellers, state.best = members, members[0]
        state.best_holdout = await _holdout(ctx, 0, state.best)
    else:
        state.labellers = [BASE]
    evaluations = [await _eval(ctx, 0, member) for member in members]
    return [one for one in evaluations if one is not None]


async def _member(ctx: JobContext, number: int) -> Scorer:
    """A seeds-only adapter. Raises AdapterError when it fails verification: there is nothing to fall back to."""
    scorer = Scorer(f"m{number}", await train_member(ctx, number))
    refused = await accept_adapter(ctx, 0, scorer.name, scorer.served)
    if refused:
        raise AdapterError(refused, remedy="See docs/engine.md, Adapters")
    return scorer


async def _self_train(ctx: JobContext, state: LoopState, round: int) -> None:
    """One round: fit on D0 and D2, verify and activate, gate, relabel D1, rebuild D2."""
    previous = None if state.best == BASE else state.best.adapter
    scorer = Scorer(f"r{round}", await train_round(ctx, round, state.pool, state.decisions[-1], previous))
    refused = await accept_adapter(ctx, round, scorer.name, scorer.served)
    if refused:
        state.stop_reason = f"adapter {scorer.served} was not activated: {refused}"
        ctx.progress.note(state.stop_reason)
        return
    holdout = await _holdout(ctx, round, scorer)
    accepted = _passes_gate(state, holdout)
    evaluation = await _eval(ctx, round, scorer)
    if accepted:
        _activate(ctx, state, scorer, holdout)
        await _label(ctx, state, round)
    else:  # the same labellers would decide the same again
        state.decisions.append(replace(state.decisions[-1], flip_rate=None))
    await _record(ctx, state, round, evaluation, scorer=scorer, holdout=holdout, activated=accepted)


def _passes_gate(state: LoopState, holdout: Evaluation | None) -> bool:
    """An adapter that loses held-out accuracy is not handed out; without held-out seeds every adapter passes."""
    return holdout is None or state.best_holdout is None or holdout.accuracy >= state.best_holdout.accuracy


def _activate(ctx: JobContext, state: LoopState, scorer: Scorer, holdout: Evaluation | None) -> None:
    state.best = scorer
    state.best_holdout = holdout
    keep = [s for s in state.labellers if s != BASE] if ctx.config.loop.ensemble else []
    state.labellers = [*keep, scorer]


async def _label(ctx: JobContext, state: LoopState, round: int) -> None:
    for scorer in state.labellers:
        if scorer.name not in state.score_keys:
            state.score_keys[scorer.name] = await score_pool(ctx, round, state.pool, scorer)
    previous = state.decisions[-1] if state.decisions else None
    keys = [state.score_keys[scorer.name] for scorer in state.labellers]
    state.decisions.append(await decide(ctx, round, state.pool, keys, previous))


async def _record(
    ctx: JobContext,
    state: LoopState,
    round: int,
    evaluation: Evaluation | None,
    *,
    scorer: Scorer | None = None,
    holdout: Evaluation | None = None,
    activated: bool = True,
) -> None:
    """Add the round to the history and ask the stopping rules."""
    decisions = state.decisions[-1]
    result = RoundResult(
        round=round,
        candidates=state.pool.size,
        selected=decisions.selected,
        per_label=decisions.per_label,
        flip_rate=decisions.flip_rate,
        agreement=decisions.agreement,
        mean_confidence=decisions.mean_confidence,
        holdout=holdout,
        eval=evaluation,
        adapter=(scorer or state.best).served,
        activated=activated,
        note="" if activated else "lost held-out accuracy: the adapter before it is kept",
        seconds=stage_seconds(ctx, round),
    )
    state.history.append(result)
    state.stop_reason = await _stop_reason(ctx, state)


def stage_seconds(ctx: JobContext, round: int) -> dict[str, float]:
    """Seconds of a round's stages. The augment rounds, which have numbers of their own, come before round 0 ends."""
    seconds: dict[str, float] = {}
    for (number, stage), value in ctx.ledger.seconds().items():
        augmenting = stage in AUGMENT_STAGES
        if (0 if augmenting else number) == round:
            seconds[f"{stage}-{number}" if augmenting else stage] = milliseconds(value)
    return seconds


def milliseconds(value: float) -> float:
    """Seconds with millisecond resolution."""
    return round(value, 3)


async def _stop_reason(ctx: JobContext, state: LoopState) -> str:
    """Ask once a round and keep the answer: a resumed run has spent more and must not stop elsewhere."""

    async def body(_run: StageRun) -> dict[str, str]:
        totals = ctx.ledger.totals()
        spent = stopping.Spent(
            tokens=int(totals.get("prompt_tokens", 0) + totals.get("completion_tokens", 0)),
            seconds=sum(ctx.ledger.seconds().values()),
        )
        return {"reason": stopping.stop_reason(state.history, ctx.config, spent) or ""}

    last = state.history[-1]
    inputs = {"adapter": last.adapter, "selected": last.selected}
    result = await run_stage(ctx, StageKey(last.round, "stop"), inputs, body, title="")
    return str(result["reason"])


def _eval_summary(
    ctx: JobContext, state: LoopState, base: Evaluation | None, seeds_only: list[Evaluation]
) -> EvalSummary:
    final = base if state.best == BASE else _final(state, seeds_only[0] if seeds_only else None)
    return EvalSummary(
        base=base.accuracy if base else None,
        seeds_only=mean(one.accuracy for one in seeds_only) if seeds_only else None,
        final=final.accuracy if final else None,
        n=len(ctx.inputs.eval),
    )


def _final(state: LoopState, seeds_only: Evaluation | None) -> Evaluation | None:
    for result in reversed(state.history):
        if result.round > 0 and result.adapter == state.best.served:
            return result.eval
    return seeds_only


async def _eval(ctx: JobContext, round: int, scorer: Scorer) -> Evaluation | None:
    pairs = [(example.text, example.label or "") for example in ctx.inputs.eval]
    return await evaluate(ctx, round, "eval", pairs, scorer)


async def _holdout(ctx: JobContext, round: int, scorer: Scorer) -> Evaluation | None:
    pairs = [(seed.text, seed.label) for seed in ctx.inputs.holdout_seeds]
    return await evaluate(ctx, round, "holdout", pairs, scorer)

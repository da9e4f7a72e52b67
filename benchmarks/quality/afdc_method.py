"""AFDC on one draw: the product's loop, then the test rows and the data set that it made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from afdc.adapter import read_manifest
from afdc.files import write_json
from afdc.task import Example
from afdc.training import TrainRow
from afdc_pipeline import metrics, scoring
from afdc_pipeline.context import JobContext
from afdc_pipeline.loop import run_loop
from afdc_pipeline.outcome import filter_counts, kept_rows
from afdc_pipeline.pool import Pool
from afdc_pipeline.stages.augment import SeenTexts, build_pool
from afdc_pipeline.stages.swap import serve
from afdc_pipeline.state import LoopState
from benchmarks.quality.bench import Bench, Case, Outcome, hard_row, mean_outcome
from benchmarks.quality.facts import duplicates, label_balance, label_precision, spread
from benchmarks.quality.judge import judge
from benchmarks.quality.product import open_job

Rows = list[dict[str, Any]]


async def run_afdc(bench: Bench, case: Case, unlabeled: Sequence[Example] = ()) -> Outcome:
    """The whole loop. The test rows are scored once, at the end, with the adapter that it hands out."""
    ctx = await _open(bench, case, unlabeled)
    try:
        state = await run_loop(ctx)
        with bench.measuring():
            return await _outcome(bench, case, ctx, state)
    finally:
        await _leave(ctx)


async def run_augment_only(bench: Bench, case: Case) -> Outcome:
    """Every variant with the label that it was written for, beside the seeds: no scoring and no selection."""
    ctx = await _open(bench, case, ())
    seen = SeenTexts(ctx)
    try:
        pool = await build_pool(ctx, seen)
        candidates = [one for chunk in pool.chunks() for one in pool.read(chunk)]
        rows = [hard_row(case.task.task, row) for row in case.drawn.seeds]
        written = [Example(text=one.text, label=one.intended) for one in candidates]
        rows += [hard_row(case.task.task, row, gold=False) for row in written]
        train = case.config.train
        probs = [
            await _fitted(bench, case, rows, train.epochs, case.spec.draw * 1000 + member, train.seed_repeat)
            for member in range(bench.options.members)
        ]
        kept = [{"text": one.text, "label": one.intended, "source": one.source} for one in candidates]
        with bench.measuring():
            return mean_outcome(probs, case, await _data_facts(bench, case, kept, _dropped(pool)))
    finally:
        seen.close()
        await _leave(ctx)


async def _fitted(bench: Bench, case: Case, rows: Sequence[TrainRow], epochs: int, seed: int, repeat: int) -> Any:
    adapter = await bench.fit(case.task.task, rows, case.config, case.folder / "fits", epochs, seed, repeat)
    return await bench.probs_of(adapter, case.test_texts, case.task.task)


async def _open(bench: Bench, case: Case, unlabeled: Sequence[Example]) -> JobContext:
    task, seeds = case.task.task, case.drawn.seeds
    return await open_job(
        bench.engine, bench.trainer, case.folder, task, seeds, case.config, unlabeled, bench.labelling_encoder
    )


async def _leave(ctx: JobContext) -> None:
    """Free the engine's slots for the next job of this process."""
    for name in list(ctx.loaded):
        await ctx.engine.unload_adapter(name)


async def _outcome(bench: Bench, case: Case, ctx: JobContext, state: LoopState) -> Outcome:
    """Metrics of M* with the calibration of its manifest, as `afdc eval` reports them."""
    adapter = state.best.served or None
    await serve(ctx, adapter)
    logprobs = (await bench.engine.score(case.test_texts, case.task.task, adapter)).logprobs
    raw = scoring.normalise(logprobs)
    calibrated = raw
    if adapter is not None:
        manifest = read_manifest(ctx.layout.adapters / adapter)
        calibrated = scoring.normalise((logprobs - (manifest.prior or 0.0)) / manifest.temperature)
    after = metrics.evaluate(calibrated, case.gold_labels)
    kept = [row for row in kept_rows(ctx, state) if row["source"] != "seed"]
    facts: dict[str, Any] = {
        "ece_raw": metrics.evaluate(raw, case.gold_labels).ece,
        "stop_reason": state.stop_reason,
        "adapter": adapter,
        "rounds": [round.model_dump(mode="json", exclude={"per_label"}) for round in state.history],
        "tokens": {k: v for k, v in ctx.ledger.totals().items() if k.endswith("_tokens")},
        **await _data_facts(bench, case, kept, filter_counts(state)),
    }
    if bench.options.keep:
        write_json(case.folder / "kept.json", kept)
    return Outcome(after.accuracy, after.macro_f1 or 0.0, after.ece, facts)


async def _data_facts(bench: Bench, case: Case, kept: Rows, dropped: dict[str, int]) -> dict[str, Any]:
    """Precision, balance, variety and repeats of D2."""
    generated = [row["text"] for row in kept if row["source"] == "generated"]
    parents = len(case.drawn.seeds)
    written = parents * case.config.augment.variants_of(parents) * case.config.augment.rounds
    vectors, seeds = bench.encoder.encode(generated), bench.encoder.encode([row.text for row in case.drawn.seeds])
    facts: dict[str, Any] = {
        "data": {
            **label_balance([row["label"] for row in kept], case.task.task.names),
            **spread(vectors, seeds),
            **duplicates(dropped, written),
            "dropped": dropped,
        }
    }
    judged = await judge(bench, case, generated)
    truth = {row.text: row.label or "" for row in case.drawn.unlabeled} | (judged.labels if judged else {})
    known = [row for row in kept if row["text"] in truth]
    facts["data"] |= label_precision(known, truth) | {"rows": len(kept)}
    if judged:
        facts["judge"] = judged.judge
    return facts


def _dropped(pool: Pool) -> dict[str, int]:
    counts: dict[str, int] = {}
    for _, reason, _ in pool.dropped():
        counts[reason] = counts.get(reason, 0) + 1
    return counts

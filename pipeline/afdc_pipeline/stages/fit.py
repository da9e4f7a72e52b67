"""Fine-tune one adapter in the trainer process and publish it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from afdc.files import atomic_writer
from afdc.training import RESULT_FILE, ROWS_FILE, TrainJob, TrainResult, TrainRow
from afdc_pipeline.context import JobContext
from afdc_pipeline.pool import Pool
from afdc_pipeline.seams import StageKey
from afdc_pipeline.stages.decide import Decisions, decided_rows
from afdc_pipeline.stages.runner import StageRun, chunks_digest, run_stage

MAX_PROBES = 8


async def train_member(ctx: JobContext, member: int) -> str:
    """Round 0: an adapter on D0 alone; members differ by their training seed. Returns the adapter's name."""
    rows = list(_seed_rows(ctx))
    return await _fit(ctx, 0, f"m{member}", rows, member=member, epochs=ctx.config.train.seed_epochs, repeat=1)


async def train_round(ctx: JobContext, round: int, pool: Pool, decisions: Decisions, previous: str | None) -> str:
    """Round t >= 1: an adapter on D0 and D2. Returns the adapter's name.

    Args:
        previous: the adapter to go on from where `train.continue_adapter` is on.
    """
    train = ctx.config.train
    continued = ctx.layout.adapters / previous if train.continue_adapter and previous else None
    return await _fit(
        ctx,
        round,
        f"r{round}",
        _round_rows(ctx, pool, decisions),
        inputs=chunks_digest(ctx, decisions.key),
        epochs=train.epochs,
        repeat=train.seed_repeat,
        continued=continued,
    )


async def _fit(
    ctx: JobContext,
    round: int,
    name: str,
    rows: Iterable[TrainRow],
    *,
    epochs: int,
    repeat: int,
    member: int = 0,
    inputs: str = "",
    continued: Path | None = None,
) -> str:
    async def body(run: StageRun) -> dict[str, Any]:
        folder = ctx.layout.rounds / name
        count = write_rows(folder / ROWS_FILE, rows)
        job = _job(ctx, round, name, folder, epochs=epochs, repeat=repeat, member=member, continued=continued)
        await ctx.engine.lend_device()
        try:
            result = await ctx.trainer.fit(job)
        finally:
            await ctx.engine.reclaim_device()
        return _stage_result(result, count)

    start = continued.name if continued else ""
    described = {"rows": inputs, "name": name, "epochs": epochs, "member": member, "continued": start}
    result = await run_stage(ctx, StageKey(round, f"train-{name}"), described, body, title=f"train adapter {name}")
    return str(result["adapter"])


def write_rows(path: Path, rows: Iterable[TrainRow]) -> int:
    """Write rows.jsonl durably, one row in memory at a time; returns how many."""
    count = 0
    with atomic_writer(path) as stream:
        for row in rows:
            stream.write(row.to_line())
            count += 1
    return count


def _job(
    ctx: JobContext,
    round: int,
    name: str,
    folder: Path,
    *,
    epochs: int,
    repeat: int,
    member: int,
    continued: Path | None,
) -> TrainJob:
    return TrainJob(
        name=f"{ctx.job}-{name}",
        job=ctx.job,
        round=round,
        member=member,
        model=ctx.info.model_path,
        model_revision=ctx.info.model_revision,
        task=ctx.task,
        template_hash=ctx.engine.template_hash(ctx.task),
        rows=folder / ROWS_FILE,
        epochs=epochs,
        gold_repeat=repeat,
        seed=ctx.config.seed * 1000 + round * 100 + member,
        config=ctx.config.train,
        continue_from=continued,
        probes=tuple(_probes(ctx)),
        max_tokens=ctx.info.max_model_len,
        work=folder / "checkpoints",
        adapters=ctx.layout.adapters,
        result=folder / RESULT_FILE,
    )


def _probes(ctx: JobContext) -> list[str]:
    """The first seed of each label or answer, some at most: the trainer reports their scores and the swap compares."""
    first = {seed.label: seed.text for seed in reversed(ctx.inputs.training_seeds)}
    return list(first.values())[:MAX_PROBES]


def _seed_rows(ctx: JobContext) -> Iterator[TrainRow]:
    names = ctx.task.names
    for seed in ctx.inputs.training_seeds:
        if ctx.task.is_open:
            yield TrainRow(text=seed.text, completion=seed.label, gold=True)
        else:
            yield TrainRow(text=seed.text, targets={names.index(seed.label): 1.0}, gold=True)


def _round_rows(ctx: JobContext, pool: Pool, decisions: Decisions) -> Iterator[TrainRow]:
    yield from _seed_rows(ctx)
    soft = ctx.config.select.soft_targets
    for candidate, row in decided_rows(ctx, pool, decisions.key):
        if row["keep"] and ctx.task.is_open:
            yield TrainRow(text=candidate.text, completion=row["answer"], weight=row["weight"])
        elif row["keep"]:
            targets = dict(enumerate(row["distribution"])) if soft else {row["label"]: 1.0}
            yield TrainRow(text=candidate.text, targets=targets, weight=row["weight"])


def _stage_result(result: TrainResult, rows: int) -> dict[str, Any]:
    name = result.adapter.name if result.adapter else ""
    return {
        "adapter": name,
        "rows": rows,
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "losses": list(result.losses[-1:]),
    }

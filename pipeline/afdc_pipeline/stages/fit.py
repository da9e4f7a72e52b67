"""Fine-tune one adapter in the trainer process and publish it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afdc.files import atomic_writer
from afdc.training import RESULT_FILE, ROWS_FILE, TrainJob, TrainResult, TrainRow
from afdc_pipeline.context import JobContext
from afdc_pipeline.holdout import Fold
from afdc_pipeline.learning import soft_targets
from afdc_pipeline.pool import Pool
from afdc_pipeline.rows import Seed
from afdc_pipeline.seams import StageKey
from afdc_pipeline.stages.decide import Decisions, decided_rows
from afdc_pipeline.stages.runner import StageRun, chunks_digest, run_stage

MAX_PROBES = 8
FOLD_MEMBERS = 50  # numbers of the fold adapters, behind those of the members: both enter the training seed


async def train_member(ctx: JobContext, member: int, temperature: float = 1.0) -> str:
    """Round 0: an adapter on D0 alone; members differ by their training seed. Returns the adapter's name.

    Args:
        temperature: of its scores, for the manifest.
    """
    rows = seed_rows(ctx, ctx.inputs.training_seeds)
    return await _fit(ctx, 0, f"m{member}", rows, _Run(ctx.config.train.seed_epochs, 1, member, temperature))


async def train_seed_fold(ctx: JobContext, name: str, fold: Fold) -> str:
    """Round 0: an adapter on D0 without a fold of the seeds. Returns its name."""
    run = _Run(ctx.config.train.seed_epochs, 1, FOLD_MEMBERS + fold.number)
    return await _fit(ctx, 0, name, seed_rows(ctx, fold.train), run, held_names(fold))


async def train_round(
    ctx: JobContext, round: int, pool: Pool, decisions: Decisions, previous: str | None, temperature: float = 1.0
) -> str:
    """Round t >= 1: an adapter on D0 and D2. Returns the adapter's name.

    Args:
        previous: the adapter to go on from where `train.continue_adapter` is on.
        temperature: of its scores, for the manifest.
    """
    train = ctx.config.train
    continued = ctx.layout.adapters / previous if train.continue_adapter and previous else None
    rows = round_rows(ctx, pool, decisions.key, Fold(ctx.inputs.training_seeds, ()))
    run = _Run(train.epochs, train.seed_repeat, temperature=temperature, continued=continued)
    return await _fit(ctx, round, f"r{round}", rows, run, chunks_digest(ctx, decisions.key))


async def train_round_fold(
    ctx: JobContext, round: int, pool: Pool, decided: Mapping[Fold, Decisions], name: str, fold: Fold
) -> str:
    """Round t >= 1: an adapter on D0 without a fold of the seeds, and on the D2 that the fold decided for itself.

    Args:
        decided: D2 of every fold.
    """
    key = decided[fold].key
    run = _Run(ctx.config.train.epochs, ctx.config.train.seed_repeat, FOLD_MEMBERS + fold.number)
    inputs = f"{chunks_digest(ctx, key)} without {held_names(fold)}"
    return await _fit(ctx, round, name, round_rows(ctx, pool, key, fold), run, inputs)


async def average_adapters(
    ctx: JobContext, round: int, name: str, adapters: Sequence[str], temperature: float = 1.0
) -> str:
    """An adapter whose update is the mean of theirs; nothing is trained. Returns its name.

    The seeds go along for the answers of the probes.

    Args:
        name: short name of the new adapter, which names the stage.
        adapters: full names.
        temperature: of its scores, for the manifest.
    """
    folders = tuple(ctx.layout.adapters / adapter for adapter in adapters)
    run = _Run(epochs=1, repeat=1, temperature=temperature, average=folders)
    return await _fit(ctx, round, name, seed_rows(ctx, ctx.inputs.training_seeds), run)


@dataclass(frozen=True)
class _Run:
    """How a training run differs from others: `member` enters its seed; `continued` is the adapter to go on from.

    With `average` nothing is trained: the mean of these adapters is published.
    """

    epochs: int
    repeat: int
    member: int = 0
    temperature: float = 1.0
    continued: Path | None = None
    average: tuple[Path, ...] = ()

    def describe(self, name: str) -> dict[str, Any]:
        """What identifies it beside its rows. The averaged are only named where there are some: the other stages keep
        the identity that they had before there was averaging.
        """
        averaged = {"average": [folder.name for folder in self.average]} if self.average else {}
        return {
            "name": name,
            "epochs": self.epochs,
            "member": self.member,
            "continued": self.continued.name if self.continued else "",
            "temperature": self.temperature,
            **averaged,
        }


def held_names(fold: Fold) -> str:
    """Ids of the held seeds, in one string."""
    return " ".join(seed.id for seed in fold.held)


async def _fit(
    ctx: JobContext, round: int, name: str, rows: Iterable[TrainRow], settings: _Run, inputs: str = ""
) -> str:
    """Train in the trainer process. `inputs` names the rows without reading them."""

    async def body(run: StageRun) -> dict[str, Any]:
        folder = ctx.layout.rounds / name
        count = write_rows(folder / ROWS_FILE, rows)
        job = _job(ctx, round, name, folder, settings)
        await ctx.engine.lend_device()
        try:
            result = await ctx.trainer.fit(job)
        finally:
            await ctx.engine.reclaim_device()
        return _stage_result(result, count)

    described = {"rows": inputs, **settings.describe(name)}
    title = f"average the weights of {len(settings.average)} adapters" if settings.average else f"train adapter {name}"
    result = await run_stage(ctx, StageKey(round, f"train-{name}"), described, body, title=title)
    return str(result["adapter"])


def write_rows(path: Path, rows: Iterable[TrainRow]) -> int:
    """Write rows.jsonl durably, one row in memory at a time; returns how many."""
    count = 0
    with atomic_writer(path) as stream:
        for row in rows:
            stream.write(row.to_line())
            count += 1
    return count


def _job(ctx: JobContext, round: int, name: str, folder: Path, settings: _Run) -> TrainJob:
    return TrainJob(
        name=f"{ctx.job}-{name}",
        job=ctx.job,
        round=round,
        member=settings.member,
        model=ctx.info.model_path,
        model_revision=ctx.info.model_revision,
        task=ctx.task,
        template_hash=ctx.engine.template_hash(ctx.task),
        rows=folder / ROWS_FILE,
        epochs=settings.epochs,
        gold_repeat=settings.repeat,
        seed=ctx.config.seed * 1000 + round * 100 + settings.member,
        config=ctx.config.train,
        continue_from=settings.continued,
        average=settings.average,
        temperature=settings.temperature,
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


def seed_rows(ctx: JobContext, seeds: Iterable[Seed]) -> Iterator[TrainRow]:
    """Gold rows."""
    names = ctx.task.names
    for seed in seeds:
        if ctx.task.is_open:
            yield TrainRow(text=seed.text, completion=seed.label, gold=True)
        else:
            yield TrainRow(text=seed.text, targets={names.index(seed.label): 1.0}, gold=True)


def round_rows(ctx: JobContext, pool: Pool, decided: StageKey, fold: Fold) -> Iterator[TrainRow]:
    """What the adapters of a round learn from: D0, and D2 or all that was scored, without what the fold leaves out."""
    yield from seed_rows(ctx, fold.train)
    soft, weighted = ctx.config.select.soft_targets, ctx.config.select.weighted
    for candidate, row in decided_rows(ctx, pool, decided):
        if not ctx.learns_from(row) or fold.leaves_out(candidate):
            continue
        if ctx.task.is_open:
            yield TrainRow(text=candidate.text, completion=row["answer"], weight=row["weight"])
        else:
            targets = soft_targets(row["distribution"]) if soft else {row["label"]: 1.0}
            yield TrainRow(text=candidate.text, targets=targets, weight=row["confidence"] if weighted else 1.0)


def labelled_rows(ctx: JobContext, pool: Pool, decided: StageKey, fold: Fold) -> Iterator[TrainRow]:
    """What an encoder learns from: D0 and D2 with their labels, without what the fold leaves out."""
    yield from seed_rows(ctx, fold.train)
    for candidate, row in decided_rows(ctx, pool, decided):
        if row["keep"] and not fold.leaves_out(candidate):
            yield TrainRow(text=candidate.text, targets={row["label"]: 1.0}, weight=row["weight"])


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

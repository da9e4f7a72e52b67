"""A few rows of a job: the very stages of a job, with few draws, no training, and a folder that is thrown away."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from itertools import chain, islice
from typing import Any

from starlette.concurrency import run_in_threadpool

from afdc.config import RunConfig
from afdc.layout import RunLayout
from afdc.wire.jobs import Preview, PreviewRow
from afdc_pipeline.context import JobContext, JobInputs, Meter, SilentProgress
from afdc_pipeline.loop import run_loop
from afdc_pipeline.outcome import kept_rows, rejected_rows
from afdc_pipeline.rows import Seed
from afdc_server.accounts.store import tokens_of
from afdc_server.duplicates import SqliteDuplicateIndex
from afdc_server.jobs import request as asked
from afdc_server.jobs.intake import checked_files
from afdc_server.jobs.shared import JobEngine
from afdc_server.ledger import SqlLedger, open_sqlite
from afdc_server.scratch import scratch_folder
from afdc_server.service.ids import JOB, new_id
from afdc_server.service.services import Services
from afdc_server.store import ParquetStore

UNTRAINED: dict[str, dict[str, Any]] = {
    "loop": {"members": 0, "rounds": 0, "folds": 0, "holdout": 0.0},
    "encoder": {"labeller": False},
    "select": {"target_rows": None, "trust": False, "strategy": "confidence"},
}
"""The base model judges: there is no adapter yet."""


async def preview_job(
    services: Services, tenant: str, config: RunConfig, inputs: asked.JobInputs, rows: int
) -> Preview:
    """Generate, filter, score and select about `rows` texts. Their tokens are on the tenant.

    Raises:
        EngineError: the engine does not answer.
    """
    return await run_in_threadpool(_run, services, tenant, config, replace(inputs, texts=None, gold=None), rows)


def _run(services: Services, tenant: str, config: RunConfig, inputs: asked.JobInputs, rows: int) -> Preview:
    with scratch_folder("afdc-preview-") as folder:
        _, checked = checked_files(services, inputs, config, folder)
        seeds = _spread(checked.seeds, rows)
        ctx_inputs = JobInputs(job=new_id(JOB), task=checked.task, seeds=seeds)
        engine = JobEngine(services.engine)
        small = _small(config, len(seeds), rows)
        try:
            return asyncio.run(_preview(services, engine, small, ctx_inputs, RunLayout(folder), rows))
        finally:
            services.budgets.spend(tenant, tokens_of(asdict(engine.usage())))


async def _preview(
    services: Services, engine: JobEngine, config: RunConfig, inputs: JobInputs, layout: RunLayout, rows: int
) -> Preview:
    database = open_sqlite(layout.ledger)
    try:
        ctx = JobContext(
            inputs=inputs,
            config=config,
            layout=layout,
            engine=engine,
            info=await engine.start(),
            trainer=services.runner.bench.trainer(layout, SilentProgress()),
            ledger=SqlLedger(database, inputs.job),
            store=ParquetStore(layout.chunks),
            open_index=lambda path: SqliteDuplicateIndex(path, config.augment.near_duplicate),
            progress=SilentProgress(),
            meter=Meter(engine),
        )
        state = await run_loop(ctx)
        made = (row for row in chain(kept_rows(ctx, state), rejected_rows(ctx, state)) if row["source"] == "generated")
        return Preview(data=[_to_wire(row) for row in islice(made, rows)])
    finally:
        await engine.close()
        database.dispose()


def _spread(seeds: tuple[Seed, ...], rows: int) -> tuple[Seed, ...]:
    """At most `rows` seeds, the labels in turn."""
    turn: dict[str, int] = {}
    ranked: list[tuple[int, int, Seed]] = []
    for seed in seeds:
        turn[seed.label] = turn.get(seed.label, -1) + 1
        ranked.append((turn[seed.label], len(ranked), seed))
    return tuple(seed for _, _, seed in sorted(ranked, key=lambda one: one[:2])[:rows])


def _small(config: RunConfig, seeds: int, rows: int) -> RunConfig:
    data = config.model_dump()
    for section, changes in UNTRAINED.items():
        data[section] |= changes
    data["augment"] |= {"rounds": 1, "variants": max(1, rows // seeds)}
    return RunConfig.model_validate(data)


def _to_wire(row: dict[str, Any]) -> PreviewRow:
    kept = row["reason"] == "kept"
    names = ("text", "intended", "label", "confidence")
    return PreviewRow(**{name: row[name] for name in names}, kept=kept, reason=row["reason"])

"""Write what the job made: data set, adapter, report, result."""

from __future__ import annotations

import shutil

from afdc.adapter import publish_adapter
from afdc.config import RunConfig
from afdc.errors import StorageError
from afdc.files import write_json
from afdc.layout import RunLayout
from afdc.presets import config_hash
from afdc.result import AdapterRef, PathRows, RunResult, Usage
from afdc_pipeline.context import JobContext
from afdc_pipeline.outcome import all_drops, filter_counts, kept_rows, rejected_rows
from afdc_pipeline.seams import Ledger
from afdc_pipeline.stages.encode import ENCODE_STAGE
from afdc_pipeline.state import BASE, LoopState
from afdc_server.export.advice import advise
from afdc_server.export.card import CardFacts
from afdc_server.export.dataset import write_dataset
from afdc_server.export.facts import Collector
from afdc_server.export.report import write_report
from afdc_server.local.facts import report_facts
from afdc_server.models import ModelRef


def finish(ctx: JobContext, state: LoopState, config: RunConfig, model: ModelRef, wall: float) -> RunResult:
    """Export everything; result.json comes last, so that its presence means that the rest is whole."""
    filtered = filter_counts(state)
    dropped = all_drops(state, filtered)
    facts = CardFacts(
        task=ctx.task,
        config=config,
        job=ctx.job,
        model=model.name,
        model_revision=model.revision,
        adapter=state.best.served,
        eval=state.eval,
        dropped=filtered,
        unlabeled=ctx.inputs.unlabeled is not None,
    )
    ctx.progress.note("writing the data set, the adapter and the report")
    seen = Collector(is_open=ctx.task.is_open)
    kept, rejected = seen.watch_kept(kept_rows(ctx, state)), seen.watch_rejected(rejected_rows(ctx, state))
    summary = write_dataset(ctx.layout.dataset, kept, rejected, facts)
    result = RunResult(
        status="succeeded",
        job=ctx.job,
        model=model.name,
        model_revision=model.revision,
        preset=config.preset,
        config_hash=config_hash(config),
        seeds=len(ctx.inputs.seeds),
        labels=list(ctx.task.names),
        rounds=state.history,
        stop_reason=state.stop_reason,
        eval=state.eval,
        dropped=dropped,
        dataset=PathRows(rows=summary.rows, path=str(ctx.layout.dataset)),
        adapter=copy_adapter(ctx.layout, state),
        advice=advise(state.history, unlabeled=ctx.inputs.unlabeled is not None),
        usage=usage_so_far(ctx.ledger, wall),
    )
    write_report(ctx.layout.report, result, seen.facts(**report_facts(ctx, state, filtered)))
    write_json(ctx.layout.result, result.model_dump(mode="json"))
    ctx.ledger.add_event("results_written", {"rows": summary.rows})
    return result


def copy_adapter(layout: RunLayout, state: LoopState) -> AdapterRef | None:
    """Put M* beside the data set; None when no adapter was trained."""
    if state.best == BASE:
        return None
    temporary = layout.root / ".adapter.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(layout.adapters / state.best.served, temporary)
    except OSError as exc:
        raise StorageError(
            f"cannot copy the adapter to {layout.root}: {exc}", remedy="Free space, then run the command again"
        ) from exc
    publish_adapter(temporary, layout.adapter)
    return AdapterRef(path=str(layout.adapter), name=state.best.served)


def usage_so_far(ledger: Ledger, wall: float = 0.0) -> Usage:
    """Totals over everything committed, in this process and the ones before it."""
    totals = ledger.totals()

    def seconds(prefix: str) -> float:
        return sum(value for (_, stage), value in ledger.seconds().items() if stage.startswith(prefix))

    return Usage(
        prompt_tokens=int(totals.get("prompt_tokens", 0)),
        completion_tokens=int(totals.get("completion_tokens", 0)),
        cached_tokens=int(totals.get("cached_tokens", 0)),
        engine_seconds=totals.get("engine_seconds", 0.0),
        trainer_seconds=seconds("train-"),
        encoder_seconds=seconds(ENCODE_STAGE),
        startup_seconds=totals.get("startup_seconds", 0.0),
        wall_seconds=wall,
    )

"""The product's own loop on one draw: its checks, ledger, row store and duplicate index; engine and trainer given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from afdc.config import RunConfig
from afdc.files import sha256_bytes, write_bytes
from afdc.layout import RunLayout
from afdc.task import Example, Task
from afdc_pipeline.context import JobContext, Meter, SilentProgress
from afdc_pipeline.seams import Encoder, Engine, Trainer
from afdc_server.duplicates import SqliteDuplicateIndex
from afdc_server.ledger import SqlLedger, open_sqlite
from afdc_server.local.request import RunRequest, check_request
from afdc_server.store import ParquetStore


async def open_job(
    engine: Engine,
    trainer: Trainer,
    folder: Path,
    task: Task,
    seeds: Sequence[Example],
    config: RunConfig,
    unlabeled: Sequence[Example] = (),
    encoder: Encoder | None = None,
) -> JobContext:
    """A job in `folder`, checked as `afdc run` checks it, ready for `run_loop` and resumable by opening it again."""
    layout = RunLayout(folder.resolve())
    checked = check_request(
        RunRequest(
            seeds=_write_rows(folder / "seeds.jsonl", [{"text": row.text, "label": row.label} for row in seeds]),
            out=layout.root,
            config=config,
            task=_write_task(folder / "task.json", task),
            unlabeled=_write_rows(folder / "unlabeled.jsonl", [{"text": row.text} for row in unlabeled])
            if unlabeled
            else None,
        )
    )
    job = f"job-{sha256_bytes(str(layout.root).encode())[:8]}"
    info = await engine.start()
    for path in (layout.state, layout.chunks, layout.adapters, layout.rounds, layout.logs):
        path.mkdir(parents=True, exist_ok=True)
    return JobContext(
        inputs=checked.job_inputs(job),
        config=config,
        layout=layout,
        engine=engine,
        info=info,
        trainer=trainer,
        ledger=SqlLedger(open_sqlite(layout.ledger), job),
        store=ParquetStore(layout.chunks),
        open_index=lambda path: SqliteDuplicateIndex(path, config.augment.near_duplicate),
        progress=SilentProgress(),
        meter=Meter(engine, engine.usage()),
        encoder=encoder if config.encoder.labeller else None,
    )


def _write_rows(path: Path, rows: Sequence[dict[str, str | None]]) -> Path:
    write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return path


def _write_task(path: Path, task: Task) -> Path:
    write_bytes(path, task.model_dump_json().encode())
    return path

"""A whole job over the real ledger, store and duplicate index, with the fake engine and trainer.

Run as a program it is what the kill tests kill: `python -m tests.fakes.job DIR [--kill-at N] [--target-rows N]
[--folds N]` sends itself SIGKILL at the Nth durable step (fsync, rename or commit) and prints the number of steps when
it survives.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import event

from afdc.config import RunConfig
from afdc.layout import RunLayout
from afdc.presets import build_config
from afdc.task import Task, text_id
from afdc_pipeline.context import JobContext, JobInputs, Meter, SilentProgress
from afdc_pipeline.loop import run_loop
from afdc_pipeline.outcome import kept_rows, rejected_rows
from afdc_pipeline.rows import Seed
from afdc_pipeline.state import LoopState
from afdc_server.duplicates import SqliteDuplicateIndex
from afdc_server.ledger import SqlLedger, open_sqlite
from afdc_server.store import ParquetStore
from tests.fakes.encoder import FakeEncoder
from tests.fakes.engine import WORDS, FakeEngine, stable_rng
from tests.fakes.trainer import FakeTrainer

TASK = Task(instruction="Sort the note.", labels=("ALPHA", "BETA", "GAMMA"))


def make_seeds(per_label: int = 4, holdout: int = 0) -> tuple[Seed, ...]:
    """Seeds of made-up words; the first `holdout` of each label are held out."""
    seeds = []
    for label in TASK.names:
        for number in range(per_label):
            words = stable_rng("seed", label, number).choice(WORDS, size=6)
            text = " ".join([*words, str(number)])
            seeds.append(Seed(text_id("s_", text, label), text, label, holdout=number < holdout))
    return tuple(seeds)


def small_config(**sections: dict[str, Any]) -> RunConfig:
    """A job of a few seconds; `sections` override it."""
    base: dict[str, Any] = {
        "augment": {"variants": 6, "rounds": 2, "context_seeds": 2},
        "loop": {"rounds": 2, "members": 2, "folds": 0, "min_flip_rate": 0.0},
    }
    return build_config("default", base, sections)


def growing_config(target: int, **sections: dict[str, Any]) -> RunConfig:
    """A job whose one planned augment round, 72 texts, falls short of `target` rows."""
    base: dict[str, Any] = {
        "augment": {"variants": 6, "rounds": 1, "context_seeds": 2},
        "loop": {"rounds": 1, "members": 2, "folds": 0},
        "select": {"target_rows": target},
    }
    return build_config("default", base, sections)


def folded_config(folds: int) -> RunConfig:
    """One round beside folds of the seeds."""
    return small_config(loop={"rounds": 1, "members": 1, "folds": folds})


@dataclass
class FakeJob:
    """A context and the fakes inside it."""

    ctx: JobContext
    engine: FakeEngine
    trainer: FakeTrainer
    encoder: FakeEncoder

    def run(self) -> LoopState:
        return asyncio.run(run_loop(self.ctx))

    def rows(self, state: LoopState) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Kept and rejected rows."""
        return list(kept_rows(self.ctx, state)), list(rejected_rows(self.ctx, state))


def make_job(
    root: Path,
    config: RunConfig | None = None,
    *,
    engine: FakeEngine | None = None,
    trainer: FakeTrainer | None = None,
    encoder: FakeEncoder | None = None,
    **inputs: Any,
) -> FakeJob:
    """A job in `root`; called again on the same folder it resumes what is there."""
    layout = RunLayout(root)
    config = config or small_config()
    engine, trainer = engine or FakeEngine(), trainer or FakeTrainer()
    encoder = encoder or FakeEncoder(inputs.get("task", TASK))
    ledger = SqlLedger(open_sqlite(layout.ledger), "job-test")
    ctx = JobContext(
        inputs=JobInputs(job="job-test", **{"task": TASK, "seeds": make_seeds(), **inputs}),
        config=config,
        layout=layout,
        engine=engine,
        info=asyncio.run(engine.start()),
        trainer=trainer,
        ledger=ledger,
        store=ParquetStore(layout.chunks),
        open_index=lambda path: SqliteDuplicateIndex(path, config.augment.near_duplicate),
        progress=SilentProgress(),
        meter=Meter(engine),
        encoder=encoder if config.encoder.labeller else None,
    )
    return FakeJob(ctx, engine, trainer, encoder)


class KillSwitch:
    """Counts durable steps and kills the process at the chosen one, before the step is taken."""

    def __init__(self, kill_at: int) -> None:
        self.steps = 0
        self.kill_at = kill_at

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def arm(self, job: FakeJob) -> None:
        for name in ("fsync", "replace", "rename"):
            setattr(os, name, self._wrap(getattr(os, name)))
        event.listen(job.ctx.ledger._engine, "commit", lambda _connection: self.step())

    def _wrap(self, real: Any) -> Any:
        def wrapped(*args: Any, **options: Any) -> Any:
            self.step()
            return real(*args, **options)

        return wrapped


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--kill-at", type=int, default=0)
    parser.add_argument("--target-rows", type=int)
    parser.add_argument("--folds", type=int)
    given = parser.parse_args()
    config = growing_config(given.target_rows) if given.target_rows else None
    job = make_job(given.root, folded_config(given.folds) if given.folds else config)
    switch = KillSwitch(given.kill_at)
    switch.arm(job)
    job.run()
    print(switch.steps)


if __name__ == "__main__":
    main()

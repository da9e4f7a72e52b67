"""Compose the real engine, trainer, ledger and store around the loop, and write the results."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from afdc.errors import ConflictError, InterruptedRunError, StorageError
from afdc.files import user_path, write_json
from afdc.layout import RunLayout
from afdc.presets import config_hash
from afdc.result import RoundResult, RunResult
from afdc_pipeline.context import JobContext, Meter
from afdc_pipeline.estimate import Plan
from afdc_pipeline.loop import run_loop
from afdc_pipeline.seams import Encoder, EncoderInfo, Engine, Progress, Trainer
from afdc_server.duplicates import SqliteDuplicateIndex
from afdc_server.encoder import SubprocessEncoder, local_encoder, resolve_encoder
from afdc_server.engines import open_engine
from afdc_server.heap import calm_collection
from afdc_server.ledger import SqlLedger, open_sqlite
from afdc_server.local.finish import finish, usage_so_far
from afdc_server.local.folder import (
    check_claim,
    check_folder,
    check_writable,
    claim_folder,
    hold_folder,
    job_id,
    job_identity,
)
from afdc_server.local.lengths import check_lengths
from afdc_server.local.plan import describe_inputs, plan_request
from afdc_server.local.request import CheckedRequest, RunRequest, check_request
from afdc_server.models import Device, ModelRef, detect_device, local_model, resolve_model
from afdc_server.store import ParquetStore

WALL_SECONDS = "wall_seconds"
EngineFactory = Callable[[ModelRef, "RunRequest", RunLayout], Engine]
TrainerFactory = Callable[[RunLayout, Progress], Trainer]
EncoderFactory = Callable[[EncoderInfo, RunLayout], Encoder]
LedgerFactory = Callable[[RunLayout, str], SqlLedger]


@dataclass(frozen=True)
class Parts:
    """The heavy parts of a run, made only once every check has passed.

    `rounds` makes the list that the loop appends each finished round to.
    """

    engine: EngineFactory
    trainer: TrainerFactory
    encoder: EncoderFactory = lambda info, layout: SubprocessEncoder(info, layout.logs)
    ledger: LedgerFactory = lambda layout, job: SqlLedger(open_sqlite(layout.ledger), job)
    rounds: Callable[[], list[RoundResult]] = list


def real_parts() -> Parts:
    """vLLM and the PEFT trainer process."""

    def engine(model: ModelRef, request: RunRequest, layout: RunLayout) -> Engine:
        settings = request.config.engine.model_copy(update={"max_lora_rank": request.config.train.rank})
        return open_engine(model, settings, layout.logs)

    def trainer(layout: RunLayout, progress: Progress) -> Trainer:
        from afdc_server.trainer import SubprocessTrainer

        return SubprocessTrainer(layout.logs, lambda step, steps, _loss: progress.advance(0, step=step, steps=steps))

    return Parts(engine, trainer)


def plan_local(request: RunRequest) -> tuple[Plan, dict[str, Any]]:
    """What a run would do and cost, and what it was given. Nothing is started, fetched or left behind.

    Raises:
        AfdcError: as `run_local` before it starts anything; the model's files are only looked at where they are here.
    """
    layout = RunLayout(user_path(request.out).resolve())
    check_folder(layout)
    checked = check_request(request)
    device = _devices(request)
    model = local_model(request.config.model, device)
    needed = needs_encoder(checked, request)
    encoder = local_encoder(request.config.encoder.model) if needed else None
    if model is not None:
        check_lengths(checked, request, model)
        if encoder is not None or not needed:
            check_claim(layout, job_identity(checked, request.config, model, encoder))
    check_writable(layout)
    return plan_request(checked, request.config, device, model), describe_inputs(checked, request.config, device)


def needs_encoder(checked: CheckedRequest, request: RunRequest) -> bool:
    """Whether an encoder labels beside the adapters: not in an open task, and not where it is switched off.

    Raises:
        UsageError: its device is not here.
    """
    if checked.task.is_open or not request.config.encoder.labeller:
        return False
    detect_device(request.config.encoder.device, "encoder.device")
    return True


def _devices(request: RunRequest) -> Device:
    """The engine's device, when that of the trainer is here too."""
    detect_device(request.config.train.device, "train.device")
    return detect_device(request.config.engine.device)


def run_local(request: RunRequest, progress: Progress, parts: Parts | None = None) -> RunResult:
    """Run a job to its end, or go on with the one that `request.out` holds.

    Raises:
        AfdcError: see `afdc.errors`; whatever was finished before is kept and the same command goes on from there.
    """
    layout = RunLayout(user_path(request.out).resolve())
    check_folder(layout)
    checked = check_request(request)
    model = resolve_model(request.config.model, _devices(request))
    encoder = resolve_encoder(request.config.encoder.model) if needs_encoder(checked, request) else None
    identity = job_identity(checked, request.config, model, encoder)
    check_lengths(checked, request, model)
    with hold_folder(layout):
        claim_folder(layout, identity)
        done = finished_result(layout)
        if done is not None:
            progress.note(f"{layout.root} is finished already; nothing to do")
            return done
        job = LocalJob(request, checked, model, encoder, layout, progress, parts or real_parts(), job_id(identity))
        with calm_collection():
            return asyncio.run(job.run())


def finished_result(layout: RunLayout) -> RunResult | None:
    """The result of a run that has succeeded, or None. One that cannot be read is written anew by the run."""
    try:
        result = RunResult.model_validate_json(layout.result.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return result if result.status == "succeeded" else None


def _cancel_on_sigterm() -> None:
    """SIGTERM ends the run as Ctrl-C does: children closed, ledger whole, result.json says interrupted."""
    task = asyncio.current_task()
    if task is not None and threading.current_thread() is threading.main_thread():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


@dataclass
class LocalJob:
    """One run in this process."""

    request: RunRequest
    checked: CheckedRequest
    model: ModelRef
    encoder: EncoderInfo | None
    layout: RunLayout
    progress: Progress
    parts: Parts
    job: str

    async def run(self) -> RunResult:
        """Start the engine, run the loop, write the results; always close what was started."""
        started = time.monotonic()
        _cancel_on_sigterm()
        ledger = self.parts.ledger(self.layout, self.job)
        before = float(ledger.get_value(WALL_SECONDS) or 0.0)
        engine = self.parts.engine(self.model, self.request, self.layout)
        rounds = self.parts.rounds()

        def wall() -> float:
            return before + time.monotonic() - started

        try:
            ctx = await self._start(engine, ledger)
            state = await run_loop(ctx, rounds)
            return finish(ctx, state, self.request.config, self.model, wall())
        except (asyncio.CancelledError, KeyboardInterrupt) as exc:
            self._leave(ledger, rounds, wall(), "interrupted", "stopped by the user")
            raise InterruptedRunError(
                "stopped", remedy=f"Everything finished is in {self.layout.root}: run the same command to go on"
            ) from exc
        except Exception as exc:  # whatever it was, result.json must not go on saying what an earlier start said
            self._leave(ledger, rounds, wall(), "failed", str(exc))
            raise
        finally:
            await engine.close()

    async def _start(self, engine: Engine, ledger: SqlLedger) -> JobContext:
        self.progress.note(f"starting the engine on {self.model.name}")
        info = await engine.start()
        return JobContext(
            inputs=self.checked.job_inputs(self.job),
            config=self.request.config,
            layout=self.layout,
            engine=engine,
            info=info,
            trainer=self.parts.trainer(self.layout, self.progress),
            ledger=ledger,
            store=ParquetStore(self.layout.chunks),
            open_index=lambda path: SqliteDuplicateIndex(path, self.request.config.augment.near_duplicate),
            progress=self.progress,
            meter=Meter(engine),
            encoder=self.parts.encoder(self.encoder, self.layout) if self.encoder else None,
        )

    def _leave(self, ledger: SqlLedger, rounds: list[RoundResult], wall: float, status: str, error: str) -> None:
        """Leave a result.json that says how far the run came, unless the very disk is what failed."""
        with suppress(StorageError, ConflictError):
            ledger.set_value(WALL_SECONDS, wall)
            self._write_result(ledger, rounds, wall, status, error)

    def _write_result(self, ledger: SqlLedger, rounds: list[RoundResult], wall: float, status: str, error: str) -> None:
        result = RunResult.model_validate(
            {
                "status": status,
                "job": self.job,
                "model": self.model.name,
                "model_revision": self.model.revision,
                "preset": self.request.config.preset,
                "config_hash": config_hash(self.request.config),
                "seeds": len(self.checked.seeds),
                "labels": list(self.checked.task.names),
                "rounds": rounds,
                "usage": usage_so_far(ledger, wall),
                "error": error,
            }
        )
        write_json(self.layout.result, result.model_dump(mode="json"))

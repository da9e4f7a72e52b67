"""One job from its inputs to its published results, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection

from afdc.config import RunConfig
from afdc.errors import ConflictError, InterruptedRunError
from afdc.layout import RunLayout
from afdc.result import RunResult
from afdc.wire.jobs import JobCreate
from afdc_pipeline.estimate import fold_count
from afdc_pipeline.seams import Engine
from afdc_server.accounts.limits import Budgets
from afdc_server.accounts.store import keep_spent
from afdc_server.artifacts import ArtifactStore
from afdc_server.datasets.publish import insert_dataset, publish_dataset
from afdc_server.db.database import Database
from afdc_server.db.open import DatabaseAwayError
from afdc_server.encoder import resolve_encoder
from afdc_server.jobs import store
from afdc_server.jobs.checkpoints import Checkpoints
from afdc_server.jobs.failures import describe_error
from afdc_server.jobs.leftovers import trim
from afdc_server.jobs.planned import Planned
from afdc_server.jobs.progress import JobProgress, RecordedRounds, usage_of
from afdc_server.jobs.rebuild import DATASET_KEY, prepare_folder, whole_result
from afdc_server.jobs.request import check_written, find_inputs, write_inputs
from afdc_server.jobs.shared import JobEngine, SharedEngine
from afdc_server.jobs.states import StateError
from afdc_server.ledger import FencedError, SqlLedger
from afdc_server.local.job import EncoderFactory, LocalJob, Parts, TrainerFactory, needs_encoder
from afdc_server.local.lengths import check_lengths
from afdc_server.local.plan import plan_request
from afdc_server.local.request import CheckedRequest, RunRequest
from afdc_server.models import ModelRef
from afdc_server.service.settings import without_address

STARTS_IN_VAIN = 10
log = structlog.get_logger("afdc.jobs")


@dataclass(frozen=True)
class Bench:
    """What every job is made with. `trainer` and `encoder` start child processes; tests bring fakes."""

    db: Database
    artifacts: ArtifactStore
    shared: SharedEngine
    budgets: Budgets
    model: Callable[[], ModelRef]
    work: Path
    trainer: TrainerFactory
    encoder: EncoderFactory
    check_lengths: Callable[[CheckedRequest, RunRequest, ModelRef], None] = check_lengths


class JobThread(threading.Thread):
    """Runs a claimed job. Its end is told to the database by the thread itself, then to `ended`.

    Attributes:
        error: what the job failed with; None while it runs, and where it did not fail.
    """

    def __init__(
        self,
        bench: Bench,
        row: store.JobRow,
        fence: int,
        told: Callable[[str], None],
        ended: Callable[[JobThread], None],
    ) -> None:
        super().__init__(name=f"afdc-{row.id}", daemon=True)
        self.job: str = row.id
        self.tenant: str = row.tenant
        self.error: Exception | None = None
        self._bench = bench
        self._row = row
        self._ledger = SqlLedger(bench.db.engine, row.id, fence)
        self._told: Callable[[], None] = partial(told, row.id)
        self._ended = ended
        self._layout = RunLayout(bench.work / row.id)
        self._lock = threading.Lock()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    def stop(self) -> None:
        """Let go as soon as possible; what is committed stays. May be called from any thread, more than once."""
        with self._lock:
            if self._stopping:
                return  # a second cancellation would cut off the first one's cleaning up
            self._stopping = True
            if self._loop is not None and self._task is not None:
                with suppress(RuntimeError):  # its loop has ended: it publishes, or is done
                    self._loop.call_soon_threadsafe(self._task.cancel)

    def run(self) -> None:
        """The thread's body: never raises."""
        try:
            self._work(self._ledger)
        except (FencedError, StateError) as exc:  # another process has the job now, and this one says nothing more
            log.warning("job given up", job=self.job, error=str(exc))
        except Exception as exc:  # the database itself: the lease runs out, and the job is taken up again
            log.error("job left without a word", job=self.job, exc_info=exc)
        finally:
            self._ended(self)
            self._told()

    def _work(self, ledger: SqlLedger) -> None:
        try:
            result = asyncio.run(self._main(ledger))
            self._finish(ledger, result)
        except (InterruptedRunError, asyncio.CancelledError, StateError):
            self._act(ledger, "stopped")
        except FencedError:
            raise
        except Exception as exc:
            if self._may_go_on(exc):
                raise
            self._fail(ledger, exc)

    def _may_go_on(self, exc: Exception) -> bool:
        """Whether the next start has a chance where the database was away, as far as earlier ones tell."""
        if not isinstance(exc, DatabaseAwayError):
            return False
        with self._bench.db.read() as connection:
            return store.starts_in_vain(connection, self.job) < STARTS_IN_VAIN

    def _fail(self, ledger: SqlLedger, exc: Exception) -> None:
        log.warning("job failed", job=self.job, exc_info=exc)
        self.error = exc
        if self._stopping:  # whoever wanted it to stop gets that, and hears of the error at the next start
            self._act(ledger, "stopped")
        else:
            self._act(ledger, "fail", error=describe_error(exc))

    def _act(self, ledger: SqlLedger, action: Any, **values: Any) -> None:
        usage = usage_of(ledger)
        with ledger.transaction() as connection:
            told = {"error": values["error"]} if "error" in values else {}
            store.act(connection, self.job, action, told, usage=usage, **values)

    async def _main(self, ledger: SqlLedger) -> RunResult:
        with self._lock:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            if self._stopping:
                raise InterruptedRunError("stopped before it began")
        self._check_model()
        done = await asyncio.to_thread(whole_result, self._layout)
        if done is not None:
            return done
        await asyncio.to_thread(self._prepare_folder, ledger)
        config = RunConfig.model_validate(without_address(self._row.config))
        request, checked = await asyncio.to_thread(self._prepare, config)
        model = self._bench.model()
        needed = needs_encoder(checked, request)
        encoder = await asyncio.to_thread(resolve_encoder, request.config.encoder.model) if needed else None
        self._bench.check_lengths(checked, request, model)
        progress = JobProgress(ledger, self._plan(checked, model, config), self._told)
        parts = self._parts(ledger)
        return await LocalJob(request, checked, model, encoder, self._layout, progress, parts, self.job).run()

    def _check_model(self) -> None:
        info, row = self._bench.shared.host.info, self._row
        if (info.model, info.model_revision) != (row.model, row.model_revision):
            raise ConflictError(
                f"the job was made for {row.model} at {row.model_revision}, "
                f"and this server has {info.model} at {info.model_revision}",
                remedy="Retry it on a server with that model, or make a new job",
            )

    def _prepare_folder(self, ledger: SqlLedger) -> None:
        def forgotten(connection: Connection) -> None:
            """What it has spent stays spent, and is counted once."""
            keep_spent(connection, self.tenant, self._row.usage)
            store.change(connection, self.job, usage={})

        told = self._checkpoints(ledger).locations()
        prepare_folder(ledger, self._layout, self._bench.artifacts, told, forgotten)

    def _prepare(self, config: RunConfig) -> tuple[RunRequest, CheckedRequest]:
        wanted = JobCreate.model_validate(self._row.request)
        with self._bench.db.read() as connection:
            inputs = find_inputs(connection, self.tenant, wanted)
        request = write_inputs(self._layout.root / "inputs", inputs, self._bench.artifacts, config)
        return request, check_written(request)

    def _plan(self, checked: CheckedRequest, model: ModelRef, config: RunConfig) -> Planned:
        plan = plan_request(checked, config, self._bench.shared.device, model)
        rounds = config.loop.rounds
        folds = fold_count(config, checked.seeds) if rounds else 0  # they label for themselves before each round
        scores, encoded = plan.adapters + folds * rounds, rounds + 1 + folds
        stages = {"generate": 2 * plan.augment_rounds, "train": plan.adapters, "score": scores, "encode": encoded}
        return Planned(plan.seconds, {part: count for part, count in stages.items() if count})

    def _parts(self, ledger: SqlLedger) -> Parts:
        def engine(_model: ModelRef, _request: RunRequest, _layout: RunLayout) -> Engine:
            return JobEngine(self._bench.shared, partial(self._bench.budgets.check_job, self.tenant))

        return Parts(
            engine,
            self._bench.trainer,
            self._bench.encoder,
            ledger=lambda _layout, _job: ledger,
            rounds=lambda: RecordedRounds(ledger, self._told, self._checkpoints(ledger).keep),
        )

    def _finish(self, ledger: SqlLedger, result: RunResult) -> None:
        """Publish what the run has written, then say so in one transaction."""
        with ledger.transaction() as connection:
            store.act(connection, self.job, "export")
        self._told()
        checkpoints = self._checkpoints(ledger)
        ids, new = checkpoints.publish_all()
        dataset = publish_dataset(self._bench.artifacts, self._layout.dataset, ids[DATASET_KEY])
        RecordedRounds(ledger, self._told).extend(result.rounds)  # another server may have told of fewer
        with ledger.transaction() as connection:
            insert_dataset(
                connection, self.tenant, self.job, ids[DATASET_KEY], dataset, version=1, parent=None, reviewed=0
            )
            replaced = checkpoints.finish(connection, new, result)
            final = ids.get(result.adapter.name) if result.adapter else None
            told = {"dataset": ids[DATASET_KEY], "adapter": final, "rows": dataset.rows}
            values = {"result": result.model_dump(mode="json"), "usage": usage_of(ledger), "dataset": ids[DATASET_KEY]}
            progress = {"fraction": 1.0, "eta_seconds": 0.0, "counts": {}}
            store.act(connection, self.job, "finish", told, adapter=final, stage="", progress=progress, **values)
        self._told()
        checkpoints.forget(replaced)
        trim(self._layout)

    def _checkpoints(self, ledger: SqlLedger) -> Checkpoints:
        return Checkpoints(self._bench.db, self._bench.artifacts, ledger, self._layout, self.tenant)

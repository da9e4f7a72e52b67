"""One job from its inputs to its published results, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from afdc.config import RunConfig
from afdc.errors import AfdcError, ConflictError, InputError, InterruptedRunError, ModelError, UsageError
from afdc.layout import RunLayout
from afdc.result import RunResult
from afdc.wire.jobs import JobCreate
from afdc_pipeline.seams import EncoderInfo, Engine, Progress
from afdc_server.api.problems import RequestError
from afdc_server.artifacts import ArtifactStore
from afdc_server.datasets.publish import (
    AdapterFacts,
    DatasetFacts,
    insert_adapter,
    insert_dataset,
    publish_adapter,
    publish_dataset,
)
from afdc_server.db.database import Database
from afdc_server.encoder import resolve_encoder
from afdc_server.jobs import store
from afdc_server.jobs.planned import Planned
from afdc_server.jobs.progress import JobProgress, RecordedRounds, usage_of
from afdc_server.jobs.request import check_written, find_inputs, write_inputs
from afdc_server.jobs.shared import JobEngine, SharedEngine
from afdc_server.jobs.states import StateError
from afdc_server.ledger import SqlLedger
from afdc_server.local.job import EncoderFactory, LocalJob, Parts, TrainerFactory, finished_result, needs_encoder
from afdc_server.local.lengths import check_lengths
from afdc_server.local.plan import plan_request
from afdc_server.local.request import CheckedRequest, RunRequest
from afdc_server.models import ModelRef
from afdc_server.service.ids import ADAPTER, DATASET, new_id

PUBLISHED = "published"
USER_ERRORS = (UsageError, InputError, ModelError, RequestError)
log = structlog.get_logger("afdc.jobs")


@dataclass(frozen=True)
class Bench:
    """What every job is made with. `trainer` and `encoder` start child processes; tests bring fakes."""

    db: Database
    artifacts: ArtifactStore
    shared: SharedEngine
    model: Callable[[], ModelRef]
    work: Path
    trainer: TrainerFactory
    encoder: EncoderFactory
    check_lengths: Callable[[CheckedRequest, RunRequest, ModelRef], None] = check_lengths


class JobThread(threading.Thread):
    """Runs a claimed job. Its end is told to the database by the thread itself, then to `ended`."""

    def __init__(
        self, bench: Bench, row: store.JobRow, told: Callable[[str], None], ended: Callable[[str], None]
    ) -> None:
        super().__init__(name=f"afdc-{row.id}", daemon=True)
        self.job: str = row.id
        self.tenant: str = row.tenant
        self._bench = bench
        self._wanted = JobCreate.model_validate(row.request)
        self._config = RunConfig.model_validate(row.config)
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
            if self._loop is not None and self._task is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._task.cancel)

    def run(self) -> None:
        """The thread's body: never raises."""
        try:
            ledger = SqlLedger(self._bench.db.engine, self.job)
        except AfdcError as exc:
            log.warning("job not started", job=self.job, error=str(exc))
            self._ended(self.job)
            return
        try:
            self._work(ledger)
        except ConflictError as exc:  # of the fence: another process has the job now, and this one says nothing more
            log.warning("job given up", job=self.job, error=str(exc))
        except Exception as exc:  # the database itself: the lease runs out, and the job is taken up again
            log.error("job left without a word", job=self.job, exc_info=exc)
        finally:
            self._told()
            self._ended(self.job)

    def _work(self, ledger: SqlLedger) -> None:
        try:
            result = asyncio.run(self._main(ledger))
            self._finish(ledger, result)
        except (InterruptedRunError, asyncio.CancelledError, StateError):
            self._act(ledger, "stopped")
        except ConflictError:
            raise
        except Exception as exc:
            log.warning("job failed", job=self.job, exc_info=exc)
            self._act(ledger, "fail", error=describe_error(exc))

    def _act(self, ledger: SqlLedger, action: Any, **values: Any) -> None:
        with ledger.transaction() as connection:
            told = {"error": values["error"]} if "error" in values else {}
            store.act(connection, self.job, action, told, usage=usage_of(ledger), **values)

    async def _main(self, ledger: SqlLedger) -> RunResult:
        with self._lock:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            if self._stopping:
                raise InterruptedRunError("stopped before it began")
        done = finished_result(self._layout)
        if done is not None:
            return done
        request, checked = await asyncio.to_thread(self._prepare)
        model = self._bench.model()
        encoder = resolve_encoder(request.config.encoder.model) if needs_encoder(checked, request) else None
        self._bench.check_lengths(checked, request, model)
        progress = JobProgress(ledger, self._plan(checked, model), self._told)
        parts = self._parts(ledger)
        return await LocalJob(request, checked, model, encoder, self._layout, progress, parts, self.job).run()

    def _prepare(self) -> tuple[RunRequest, CheckedRequest]:
        with self._bench.db.read() as connection:
            inputs = find_inputs(connection, self.tenant, self._wanted)
        request = write_inputs(self._layout.root / "inputs", inputs, self._bench.artifacts, self._config)
        return request, check_written(request)

    def _plan(self, checked: CheckedRequest, model: ModelRef) -> Planned:
        device = "cuda" if self._bench.shared.host.info.device.startswith("cuda") else "cpu"
        plan = plan_request(checked, self._config, device, model)  # type: ignore[arg-type]  # one of the two devices
        rounds = self._config.loop.rounds + 1
        stages = {"generate": 2 * plan.augment_rounds, "train": plan.adapters, "score": plan.adapters, "encode": rounds}
        return Planned(plan.seconds, {part: count for part, count in stages.items() if count})

    def _parts(self, ledger: SqlLedger) -> Parts:
        def engine(_model: ModelRef, _request: RunRequest, _layout: RunLayout) -> Engine:
            return JobEngine(self._bench.shared)

        def trainer(layout: RunLayout, progress: Progress) -> Any:
            return self._bench.trainer(layout, progress)

        def encoder(info: EncoderInfo, layout: RunLayout) -> Any:
            return self._bench.encoder(info, layout)

        return Parts(
            engine,
            trainer,
            encoder,
            ledger=lambda _layout, _job: ledger,
            rounds=lambda: RecordedRounds(ledger, self._told),
        )

    def _finish(self, ledger: SqlLedger, result: RunResult) -> None:
        """Publish what the run has written, then say so in one transaction."""
        with ledger.transaction() as connection:
            store.act(connection, self.job, "export")
        self._told()
        ids = self._published_ids(ledger, result)
        dataset = publish_dataset(self._bench.artifacts, self._layout.dataset, ids["dataset"])
        adapters = [self._publish_adapter(folder, ids[folder.name]) for folder in self._adapters()]
        with ledger.transaction() as connection:
            self._insert(connection, ids, dataset, adapters, result)
            final = ids.get(result.adapter.name) if result.adapter else None
            told = {"dataset": ids["dataset"], "adapter": final, "rows": dataset.rows}
            values = {"result": result.model_dump(mode="json"), "usage": usage_of(ledger), "dataset": ids["dataset"]}
            progress = {"fraction": 1.0, "eta_seconds": 0.0, "counts": {}}
            store.act(connection, self.job, "finish", told, adapter=final, stage="", progress=progress, **values)

    def _adapters(self) -> list[Path]:
        """Folders of the adapters of the rounds; those of the folds are no one's to serve."""
        root = self._layout.adapters
        folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        return [path for path in folders if not path.name.startswith(".") and not _is_fold(path)]

    def _published_ids(self, ledger: SqlLedger, result: RunResult) -> dict[str, str]:
        """Ids of what is published, settled once: a repeat after a kill publishes under the same ones."""
        ids: dict[str, str] = ledger.get_value(PUBLISHED) or {}
        if not ids:
            ids = {"dataset": new_id(DATASET), **{folder.name: new_id(ADAPTER) for folder in self._adapters()}}
            ledger.set_value(PUBLISHED, ids)
        return ids

    def _publish_adapter(self, folder: Path, id: str) -> AdapterFacts:
        return publish_adapter(self._bench.artifacts, folder, id)

    def _insert(
        self,
        connection: Any,
        ids: dict[str, str],
        dataset: DatasetFacts,
        adapters: list[AdapterFacts],
        result: RunResult,
    ) -> None:
        insert_dataset(connection, self.tenant, self.job, ids["dataset"], dataset, version=1, parent=None, reviewed=0)
        refused = {one.adapter for one in result.rounds if not one.activated}
        final = result.adapter.name if result.adapter else ""
        for facts in adapters:
            insert_adapter(
                connection,
                self.tenant,
                self.job,
                ids[facts.name],
                facts,
                final=facts.name == final,
                activated=facts.name not in refused,
            )


def _is_fold(folder: Path) -> bool:
    """`{job}-r1-f0-{sha12}`: an adapter that left seeds out, to judge the round's own."""
    parts = folder.name.rsplit("-", 2)
    return len(parts) == 3 and parts[1].startswith("f") and parts[1][1:].isdigit()


def describe_error(exc: Exception) -> dict[str, Any]:
    """Why a job failed, for its owner. What we did not foresee stays in the log."""
    if isinstance(exc, AfdcError):
        is_user = isinstance(exc, USER_ERRORS)
        return {
            "code": exc.code,
            "message": str(exc)[:4000],
            "category": "user" if is_user else "server",
            "retryable": not is_user,
        }
    message = f"an unexpected error ({type(exc).__name__}); the server's log has it"
    return {"code": "internal", "message": message, "category": "server", "retryable": True}

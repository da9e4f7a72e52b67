"""From a request to a queued job: checked as far as that costs nothing, within the limits, in one transaction."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select

from afdc.config import RunConfig
from afdc.files import canonical_json, sha256_bytes
from afdc.presets import config_hash
from afdc.wire.jobs import TERMINAL, JobCreate
from afdc_pipeline.estimate import Plan
from afdc_server.accounts.limits import limits_of, spent_tokens, told_spent
from afdc_server.db.schema import service_jobs
from afdc_server.jobs import store
from afdc_server.jobs.request import JobInputs, check_fit, check_written, find_inputs, resolve_config, write_inputs
from afdc_server.local.plan import plan_request
from afdc_server.local.request import CheckedRequest, RunRequest
from afdc_server.scratch import scratch_folder
from afdc_server.service.errors import BusyError, TooManyError
from afdc_server.service.ids import JOB, new_id
from afdc_server.service.services import Services

CHECKED_TEXTS = 20_000
REMEMBERED = 1024
RETRY_S = 30.0


def check_job(services: Services, tenant: str, wanted: JobCreate) -> tuple[RunConfig, JobInputs]:
    """Everything about a job that can be refused before it costs anything.

    Raises:
        AfdcError: what is wrong with the request, in the words of the API.
    """
    config, inputs = _settle(services, tenant, wanted)
    name = _content(inputs, config)
    if not _passed.knows(name):
        with scratch_folder("afdc-check-") as folder:
            checked_files(services, inputs, config, folder)
        _passed.add(name)
    return config, inputs


def _settle(services: Services, tenant: str, wanted: JobCreate) -> tuple[RunConfig, JobInputs]:
    """Settings and sets of a job, found and fitting together."""
    settings = services.settings
    config = resolve_config(wanted, services.engine.host.info.model, settings.engine, settings.jobs)
    with services.db.read() as connection:
        inputs = find_inputs(connection, tenant, wanted)
        limits = limits_of(connection, tenant, settings.limits)
    check_fit(inputs, config, limits)
    return config, inputs


def _content(inputs: JobInputs, config: RunConfig) -> str:
    """Hash of all that the checks of files depend on."""
    sets = [one.sha256 if one else "" for one in (inputs.seeds, inputs.gold, inputs.texts)]
    reviewed = [[example.text, example.label] for example in inputs.reviewed]
    return sha256_bytes(canonical_json([sets, reviewed, config.model_dump(mode="json")]))


class _Passed:
    """What was checked lately and found good: teams post the same seeds again and again."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def knows(self, name: str) -> bool:
        with self._lock:
            return name in self._names

    def add(self, name: str) -> None:
        with self._lock:
            self._names[name] = None
            if len(self._names) > REMEMBERED:
                self._names.popitem(last=False)


_passed = _Passed()


def checked_files(
    services: Services, inputs: JobInputs, config: RunConfig, folder: Path
) -> tuple[RunRequest, CheckedRequest]:
    """The inputs as files, checked as `afdc run` checks them: seeds, gold, leaks of one into the other, lengths."""
    few_texts = inputs.texts is None or inputs.texts.report.rows <= CHECKED_TEXTS
    used = inputs if few_texts else JobInputs(inputs.seeds, inputs.gold, None, inputs.reviewed)
    request = write_inputs(folder / "inputs", used, services.artifacts, config)
    checked = check_written(request)
    services.runner.bench.check_lengths(checked, request, services.runner.bench.model())
    return request, checked


def plan_job(services: Services, tenant: str, wanted: JobCreate) -> Plan:
    """What a job would do and cost."""
    config, inputs = _settle(services, tenant, wanted)
    with scratch_folder("afdc-plan-") as folder:
        _, checked = checked_files(services, inputs, config, folder)
    bench = services.runner.bench
    return plan_request(checked, config, bench.shared.device, bench.model())


def enqueue(
    connection: Connection,
    services: Services,
    tenant: str,
    wanted: JobCreate,
    config: RunConfig,
    parent: str | None = None,
) -> store.JobRow:
    """Put a checked job into the queue, if there is room in it.

    Raises:
        TooManyError: the tenant has too many jobs, or has spent its tokens. BusyError: the queue is full.
    """
    check_room(connection, services, tenant)
    info = services.engine.host.info
    id = new_id(JOB)
    values: dict[str, Any] = {
        "id": id,
        "tenant": tenant,
        "name": wanted.name,
        "request": wanted.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
        "config_hash": config_hash(config),
        "parent": parent,
        "model": info.model,
        "model_revision": info.model_revision,
        "engine": info.version,
    }
    store.create(connection, values)
    return store.get(connection, tenant, id)


def check_room(connection: Connection, services: Services, tenant: str) -> None:
    """See that the tenant may have one more job in the queue. Raises as `enqueue`."""
    limits = limits_of(connection, tenant, services.settings.limits)
    unfinished = service_jobs.c.status.not_in(sorted(TERMINAL))
    count = select(func.count()).select_from(service_jobs)
    mine = connection.execute(count.where(unfinished, service_jobs.c.tenant == tenant)).scalar_one()
    if mine >= limits.tenant_jobs:
        raise TooManyError(
            f"{mine} jobs are not at their end",
            reason="tenant_jobs",
            remedy="Wait for one, or cancel it",
            retry_after_s=RETRY_S,
        )
    queued = connection.execute(count.where(service_jobs.c.status == "queued")).scalar_one()
    if queued >= limits.queued_jobs:
        raise BusyError("the server's queue is full", reason="queue", remedy="Try again later", retry_after_s=RETRY_S)
    if limits.tenant_tokens is not None:
        spent = spent_tokens(connection, tenant)
        if spent >= limits.tenant_tokens:
            told = told_spent(spent, limits.tenant_tokens)
            raise TooManyError(told, reason="tenant_tokens", remedy="Ask the operator")

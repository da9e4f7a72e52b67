"""Make the services: real ones by default; tests give an engine, a trainer and an encoder of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afdc.errors import StorageError
from afdc.layout import RunLayout
from afdc_pipeline.seams import EncoderInfo, Engine, Progress
from afdc_server.accounts.keys import load_secret
from afdc_server.accounts.limits import Budgets
from afdc_server.accounts.store import DEFAULT_TENANT, create_key, has_key
from afdc_server.accounts.uses import KeyUses
from afdc_server.artifacts import ArtifactStore
from afdc_server.db.database import Database
from afdc_server.db.migrate import upgrade
from afdc_server.db.open import open_database
from afdc_server.engines import open_engine
from afdc_server.jobs.host import EngineHost
from afdc_server.jobs.hub import EventHub
from afdc_server.jobs.runner import Runner
from afdc_server.jobs.shared import SharedEngine
from afdc_server.jobs.work import Bench
from afdc_server.local.job import real_parts as local_parts
from afdc_server.local.lengths import check_lengths
from afdc_server.models import ModelRef, detect_device, resolve_model
from afdc_server.service.instance import Instance, hold_instance
from afdc_server.service.rates import RateLimit
from afdc_server.service.services import Services
from afdc_server.service.settings import CACHE, ServerSettings
from afdc_server.service.startup import check_exposure
from afdc_server.service.traffic import Traffic


@dataclass(frozen=True)
class HeavyParts:
    """What needs a model. `model` is called once the engine is wanted."""

    model: Callable[[], ModelRef]
    engine: Callable[[ModelRef], Engine]
    trainer: Callable[[RunLayout, Progress], Any]
    encoder: Callable[[EncoderInfo, RunLayout], Any]
    check_lengths: Callable[..., None] = check_lengths


def real_parts(settings: ServerSettings) -> HeavyParts:
    """vLLM, the PEFT trainer and the sentence encoder."""

    local = local_parts()
    return HeavyParts(
        model=lambda: resolve_model(settings.model, detect_device(settings.engine.device)),
        engine=lambda model: open_engine(model, settings.engine, settings.data / "logs"),
        trainer=local.trainer,
        encoder=local.encoder,
    )


def make_services(settings: ServerSettings, parts: HeavyParts) -> Services:
    """Open database, artifact store and secret, bring the database up to date; start nothing.

    Raises:
        AfdcError: what is wrong, with the setting to change.
    """
    _make_folder(settings.data)
    instance = hold_instance(settings.data)
    try:
        return _make_services(settings, parts, instance)
    except BaseException:
        instance.release()
        raise


def _make_services(settings: ServerSettings, parts: HeavyParts, instance: Instance) -> Services:
    _make_folder(settings.work)
    artifacts = ArtifactStore(settings.artifact_url, settings.data / CACHE)
    artifacts.check()
    database = Database(open_database(settings.database))
    try:
        upgrade(database.engine)
        check_exposure(settings, database)
    except BaseException:
        database.close()
        raise
    return _assemble(settings, parts, instance, database, artifacts)


def _assemble(
    settings: ServerSettings, parts: HeavyParts, instance: Instance, database: Database, artifacts: ArtifactStore
) -> Services:
    model = _once(parts.model)
    shared = SharedEngine(EngineHost(lambda: parts.engine(model())), settings.engine.max_loras)
    budgets = Budgets(database, settings.limits)
    bench = Bench(
        db=database,
        artifacts=artifacts,
        shared=shared,
        budgets=budgets,
        model=model,
        work=settings.work,
        trainer=parts.trainer,
        encoder=parts.encoder,
        check_lengths=parts.check_lengths,
    )
    hub = EventHub(database)
    return Services(
        settings=settings,
        db=database,
        secret=load_secret(settings.secret_path),
        artifacts=artifacts,
        rates=RateLimit(settings.limits.requests_per_minute),
        uses=KeyUses(database),
        budgets=budgets,
        traffic=Traffic(),
        hub=hub,
        engine=shared,
        runner=Runner(bench, settings, instance.name, hub.notify),
        instance=instance,
    )


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StorageError(f"cannot make {path}: {exc.strerror}", remedy="Give --data another folder") from exc


def _once(make: Callable[[], ModelRef]) -> Callable[[], ModelRef]:
    made: list[ModelRef] = []

    def get() -> ModelRef:
        if not made:
            made.append(make())
        return made[0]

    return get


def first_key(services: Services) -> str | None:
    """A key with every scope, made on the very first start; None when there are keys already."""
    with services.db.write() as connection:
        if has_key(connection, usable=False):
            return None
        _, key = create_key(connection, services.secret, DEFAULT_TENANT, ("read", "jobs", "admin"), "first start")
    return key

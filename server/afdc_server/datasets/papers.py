"""What card and manifest of a new version say besides the rows, read back from the version before it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import ValidationError
from sqlalchemy import Connection, select

from afdc.config import RunConfig
from afdc.errors import ConflictError
from afdc.presets import config_hash
from afdc.result import EvalSummary, RunResult
from afdc_pipeline.select.columns import REASONS
from afdc_server.artifacts import ArtifactStore
from afdc_server.datasets.store import StoredDataset
from afdc_server.db.schema import service_jobs
from afdc_server.export.card import CardFacts
from afdc_server.export.dataset import JOB_FILE, MANIFEST_FILE

TITLE = "{} reviewed by people"
TITLES = {True: "Fine-tuning data for free answers,", False: "Fine-tuning data for text classification,"}


def read_result(connection: Connection, tenant: str, job: str) -> tuple[RunResult | None, bool]:
    """What the job measured, where it is still known, and whether it was given texts without labels."""
    query = select(service_jobs.c.result, service_jobs.c.request)
    row = connection.execute(query.where(service_jobs.c.id == job, service_jobs.c.tenant == tenant)).first()
    if row is None or row.result is None:
        return None, False
    return RunResult.model_validate(row.result), row.request.get("unlabeled") is not None


def card_facts(
    dataset: StoredDataset, artifacts: ArtifactStore, result: RunResult | None, unlabeled: bool
) -> CardFacts:
    """The facts of a new version. Without `result` the card says nothing of accuracy and of texts that were dropped.

    Raises:
        ConflictError: the folder was written by a version of AFDC with other settings.
        StorageError: it cannot be read.
    """
    manifest = json.loads(_read(dataset, artifacts, MANIFEST_FILE))
    return CardFacts(
        task=dataset.task,
        config=_read_config(yaml.safe_load(_read(dataset, artifacts, JOB_FILE)), manifest),
        job=manifest["job"],
        model=manifest["model"],
        model_revision=manifest["model_revision"],
        adapter=manifest["adapter"],
        eval=EvalSummary() if result is None else result.eval,
        dropped={} if result is None else _dropped_early(result.dropped),
        title=TITLE.format(TITLES[dataset.task.is_open]),
        unlabeled=unlabeled,
    )


def _read(dataset: StoredDataset, artifacts: ArtifactStore, name: str) -> bytes:
    file = dataset.file(name)
    return b"".join(artifacts.pieces(dataset.location, name, 0, file.bytes))


def _read_config(document: Mapping[str, Any], manifest: Mapping[str, Any]) -> RunConfig:
    """The settings of `job.yaml`. It pins the model, and the job may have named it otherwise: the hash tells."""
    settings = {name: value for name, value in document["run"].items() if name != "task"}
    try:
        names = dict.fromkeys((settings["model"], manifest["model"], ""))
        configs = [RunConfig.model_validate({**settings, "model": name}) for name in names]
    except ValidationError as exc:
        message = "this data set was made by a version of AFDC with other settings, and no new version can be written"
        raise ConflictError(message, remedy="Run the job again") from exc
    return next((one for one in configs if config_hash(one) == manifest["config_hash"]), configs[0])


def _dropped_early(dropped: Mapping[str, int]) -> dict[str, int]:
    """Texts that never were candidates: a run's result counts those that selection left out among them."""
    return {reason: count for reason, count in dropped.items() if reason not in REASONS.values()}

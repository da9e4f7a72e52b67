"""A small server with data sets of two tenants: the real routers over a real database and a folder as store."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI
from sqlalchemy import insert

from afdc.files import sha256_file
from afdc.presets import build_config
from afdc.result import EvalSummary, RunResult
from afdc.task import Task
from afdc_server.accounts.store import create_key
from afdc_server.accounts.uses import KeyUses
from afdc_server.api import adapters, datasets, problems
from afdc_server.api.deps import Heavy
from afdc_server.artifacts import ArtifactStore
from afdc_server.datasets.publish import insert_adapter, insert_dataset, publish_adapter, publish_dataset
from afdc_server.db import schema
from afdc_server.db.database import Database
from afdc_server.db.open import open_database
from afdc_server.export.card import CardFacts
from afdc_server.export.dataset import write_dataset
from afdc_server.ledger import schema as ledger
from afdc_server.service.ids import ADAPTER, DATASET, JOB, new_id
from afdc_server.service.rates import RateLimit
from afdc_server.service.settings import ServerSettings

LABELS = ("billing", "delivery", "技术问题")
TASK = Task.model_validate({"instruction": "Sort the <message> & answer.", "labels": list(LABELS)})
OPEN_TASK = Task.model_validate({"instruction": "Answer the question.", "labels": None})


def make_row(i: int, **changes: Any) -> dict[str, Any]:
    """A generated row with every column filled, as the pipeline hands it over."""
    confidence = round(0.5 + (i % 10) / 20, 4)
    row: dict[str, Any] = {
        "id": f"c_{i:016x}",
        "text": f"Where is parcel {i}? 包裹在哪里",
        "label": LABELS[i % 3],
        "source": "generated",
        "seed_ids": ["s_0", "s_1"],
        "parent": "s_0",
        "intended": LABELS[i % 3],
        "augment_round": 1,
        "accepted_round": 1,
        "generator": "",
        "prompt_hash": "abc",
        "sampling": '{"temperature":1.0}',
        "scorer": "job-r1-0123456789ab",
        "distribution": [confidence, round(1 - confidence, 4), 0.0],
        "confidence": confidence,
        "margin": round(2 * confidence - 1, 4),
        "entropy": 0.5,
        "disagreement": 0.0,
        "label_history": [LABELS[i % 3], LABELS[i % 3]],
        "reason": "kept",
        "detail": "",
        "cluster": "",
        "weight": 0.5,
        "review_state": "unreviewed",
        "agreement": confidence,
        "mean_logprob": -0.25,
    }
    return row | changes


def make_seed(i: int) -> dict[str, Any]:
    """A gold seed."""
    sure = {"confidence": 1.0, "margin": 1.0, "entropy": 0.0, "disagreement": 0.0, "weight": 1.0, "accepted_round": 0}
    return make_row(
        i,
        id=f"s_{i}",
        text=f"Seed {i}: who pays?",
        source="seed",
        reason="gold",
        review_state="gold",
        scorer="",
        label_history=[LABELS[i % 3]],
        **sure,
    )


def left_out(i: int, **changes: Any) -> dict[str, Any]:
    """A row that selection left out."""
    return make_row(200 + i, **({"reason": "below_threshold", "accepted_round": None, "weight": 0.0} | changes))


def dropped(i: int) -> dict[str, Any]:
    """A text that never reached the scorer."""
    blank: dict[str, Any] = dict.fromkeys(
        ("label", "confidence", "margin", "entropy", "disagreement", "accepted_round")
    )
    return left_out(i, reason="too_long", scorer="", distribution=[], label_history=[], **blank)


def kept_rows() -> list[dict[str, Any]]:
    """6 seeds and 24 generated rows, one of them a formula."""
    rows = [make_seed(i) for i in range(6)] + [make_row(i) for i in range(24)]
    rows[10]["text"] = '=HYPERLINK("http://x")'
    return rows


def rejected_rows() -> list[dict[str, Any]]:
    """5 rows that selection left out, and 2 that were dropped before."""
    return [left_out(i) for i in range(5)] + [dropped(i) for i in (5, 6)]


def card_facts(task: Task = TASK, job: str = "job1") -> CardFacts:
    """As a finished job has them."""
    return CardFacts(
        task=task,
        config=build_config("default", {"model": "SmolLM2-135M-Instruct", "loop": {"rounds": 1}}),
        job=job,
        model="SmolLM2-135M-Instruct",
        model_revision="rev",
        adapter="job-r1-0123456789ab",
        eval=EvalSummary(base=0.4, seeds_only=0.6, final=0.8, n=50),
        dropped={"too_long": 2},
    )


@dataclass
class World:
    """The server. `keys`: of tenant a (jobs), of a (read only) and of tenant b (jobs)."""

    root: Path
    db: Database
    artifacts: ArtifactStore
    settings: ServerSettings
    app: FastAPI
    keys: dict[str, str]
    made: int = 0
    clients: list[httpx.AsyncClient] = field(default_factory=list)

    def client(self, who: str = "a") -> httpx.AsyncClient:
        """A client with that key."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {self.keys[who]}"}
        made = httpx.AsyncClient(transport=transport, base_url="http://server/v1", headers=headers)
        self.clients.append(made)
        return made

    def add_job(self, tenant: str = "a") -> str:
        """A job that has succeeded."""
        job, now, facts = new_id(JOB), time.time(), card_facts()
        result = RunResult(
            status="succeeded",
            job=job,
            model=facts.model,
            preset="default",
            config_hash="h",
            seeds=6,
            labels=list(LABELS),
            eval=facts.eval,
            dropped={"too_long": 2, "below_threshold": 5},
        )
        row = dict.fromkeys(("name", "config_hash", "model", "model_revision", "engine", "stage"), "")
        tables = {"progress": {}, "usage": {}, "config": {}, "request": {"seeds": "x"}}
        with self.db.write() as connection:
            connection.execute(
                insert(schema.service_jobs).values(
                    id=job,
                    tenant=tenant,
                    status="succeeded",
                    result=result.model_dump(mode="json"),
                    attempt=1,
                    version=1,
                    created_at=now,
                    updated_at=now,
                    **row,
                    **tables,
                )
            )
        return job

    def add_dataset(
        self,
        rows: Iterable[dict[str, Any]] | None = None,
        rejected: Iterable[dict[str, Any]] | None = None,
        *,
        task: Task = TASK,
        tenant: str = "a",
        job: str = "",
    ) -> str:
        """Publish a data set. Returns its id."""
        job, id = job or self.add_job(tenant), new_id(DATASET)
        self.made += 1
        folder = self.root / "jobs" / str(self.made) / "dataset"
        kept = kept_rows() if rows is None else rows
        write_dataset(folder, kept, rejected_rows() if rejected is None else rejected, card_facts(task, job))
        facts = publish_dataset(self.artifacts, folder, id)
        with self.db.write() as connection:
            insert_dataset(connection, tenant, job, id, facts, version=1, parent=None, reviewed=0)
        return id

    def add_adapter(self, tenant: str = "a") -> str:
        """Publish an adapter. Returns its id."""
        id = new_id(ADAPTER)
        folder = make_adapter(self.root / "adapters" / id)
        facts = publish_adapter(self.artifacts, folder, id)
        with self.db.write() as connection:
            insert_adapter(connection, tenant, new_id(JOB), id, facts, final=True, activated=True)
        return id


def make_adapter(folder: Path) -> Path:
    """An adapter folder with a manifest that fits it."""
    folder.mkdir(parents=True)
    header = b'{"__metadata__":{}}'
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(2000))
    (folder / "adapter_config.json").write_text("{}")
    files = {path.name: sha256_file(path) for path in folder.iterdir()}
    manifest = {
        "name": "job-r1-0123456789ab",
        "job": "job",
        "round": 1,
        "base_model": "SmolLM2",
        "base_revision": "rev",
        "rank": 16,
        "task": TASK.model_dump(mode="json"),
        "template_hash": "h",
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@asynccontextmanager
async def running(root: Path) -> AsyncIterator[World]:
    """A server whose files are below `root`."""
    settings = ServerSettings(data=root / "data")
    db = Database(open_database(settings.database))
    for metadata in (schema.metadata, ledger.metadata):
        metadata.create_all(db.engine)
    artifacts = ArtifactStore(settings.artifact_url, root / "cache")
    secret = b"s" * 32
    with db.write() as connection:
        scopes = {"a": ("a", ["jobs"]), "reader": ("a", ["read"]), "b": ("b", ["jobs"])}
        keys = {who: create_key(connection, secret, tenant, scope)[1] for who, (tenant, scope) in scopes.items()}
    app = FastAPI()
    problems.install(app)
    app.include_router(datasets.router, prefix="/v1")
    app.include_router(adapters.router, prefix="/v1")
    app.state.heavy = Heavy()
    app.state.services = SimpleNamespace(
        db=db, artifacts=artifacts, settings=settings, secret=secret, rates=RateLimit(100_000), uses=KeyUses(db)
    )
    world = World(root, db, artifacts, settings, app, keys)
    yield world
    for client in world.clients:
        await client.aclose()
    db.close()

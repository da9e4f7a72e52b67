"""A whole server in this process: real API, runner, ledger and files, over the fake engine, trainer and encoder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from afdc.adapter import AdapterManifest
from afdc.engine_config import EngineConfig
from afdc.layout import RunLayout
from afdc.task import Task
from afdc_pipeline.seams import EncoderInfo, EngineInfo, Progress
from afdc_server.accounts.store import create_key
from afdc_server.api.app import build_app
from afdc_server.api.connections import PatientProtocol
from afdc_server.models import ModelRef
from afdc_server.service.services import Services
from afdc_server.service.settings import ServerSettings
from afdc_server.service.wiring import HeavyParts, make_services
from tests.fakes.encoder import FakeEncoder
from tests.fakes.engine import FakeEngine
from tests.fakes.job import TASK, make_seeds
from tests.fakes.trainer import FakeTrainer

CLEAR = 0.3  # noise of a fake engine whose adapters, named by chance, all find a label that stands in the text
MODEL = ModelRef("fake", Path("/nonexistent"), "rev0", 0)
SETTINGS: dict[str, Any] = {
    "augment": {"variants": 6, "rounds": 2, "context_seeds": 2},
    "loop": {"rounds": 2, "members": 2, "folds": 0, "min_flip_rate": 0.0},
}


class SlottedEngine(FakeEngine):
    """The fake engine with the real one's few slots."""

    def __init__(self, slots: int = 6, **options: Any) -> None:
        super().__init__(**options)
        self.slots = slots
        self.most = 0

    async def start(self) -> EngineInfo:
        info = await super().start()
        return EngineInfo(**{name: getattr(info, name) for name in info.__slots__} | {"device": "cpu"})

    async def load_adapter(self, folder: Path) -> AdapterManifest:
        manifest = await super().load_adapter(folder)
        self.most = max(self.most, len(self.adapters))
        assert len(self.adapters) <= self.slots, "more adapters than slots"
        return manifest


def fake_parts(engine: FakeEngine, on_call: Callable[[str], None] | None = None) -> HeavyParts:
    """Everything heavy, as fakes."""

    def trainer(_layout: RunLayout, _progress: Progress) -> FakeTrainer:
        return FakeTrainer(on_call)

    def encoder(info: EncoderInfo, layout: RunLayout) -> FakeEncoder:
        task = Task.model_validate_json((layout.root / "inputs" / "task.json").read_bytes())
        return FakeEncoder(task, info, on_call)

    return HeavyParts(lambda: MODEL, lambda _model: engine, trainer, encoder, check_lengths=lambda *_: None)


def make_settings(data: Path, **options: Any) -> ServerSettings:
    return ServerSettings(data=data, port=0, **{"lease_s": 5.0, **options})


class World:
    """A running server, and what a test needs to talk to it."""

    def __init__(self, settings: ServerSettings, parts: HeavyParts) -> None:
        settings.data.mkdir(parents=True, exist_ok=True)
        self.services: Services = make_services(settings, parts)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        config = uvicorn.Config(
            build_app(self.services), http=PatientProtocol, log_config=None, timeout_graceful_shutdown=2
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), daemon=True)

    def start(self, *, with_runner: bool = True, patience_s: float = 30) -> None:
        self.services.engine.host.start().result(patience_s)
        if with_runner:
            self.services.runner.start()
        self._thread.start()
        wait_for(lambda: self._server.started)

    def stop(self) -> None:
        self.services.hub.close_streams()
        self._server.should_exit = True
        self._thread.join(10)
        self.services.runner.close(10)
        self.services.engine.host.close()
        self.services.db.close()
        self.services.instance.release()

    def key(self, tenant: str = "default", *scopes: str) -> str:
        with self.services.db.write() as connection:
            return create_key(connection, self.services.secret, tenant, scopes or ("read", "jobs", "admin"))[1]

    def client(self, tenant: str = "default", *scopes: str) -> httpx.Client:
        """A plain HTTP client with a key."""
        headers = {"Authorization": f"Bearer {self.key(tenant, *scopes)}"}
        return httpx.Client(base_url=f"{self.address}/v1", headers=headers, timeout=30)


@contextlib.contextmanager
def running(
    data: Path, engine: FakeEngine | None = None, *, config: EngineConfig | None = None, **options: Any
) -> Iterator[World]:
    """A server on `data` until the end of the block. `config`: settings of its engine."""
    chosen = {"engine": config} if config else {}
    world = World(make_settings(data, **chosen, **options), fake_parts(engine or SlottedEngine()))
    world.start()
    try:
        yield world
    finally:
        world.stop()


def wait_for(check: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Poll until `check` is true; returns what it returned."""
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return found


def seed_body(per_label: int = 4, **more: Any) -> dict[str, Any]:
    """JSON of POST /seeds."""
    examples = [{"text": seed.text, "label": seed.label} for seed in make_seeds(per_label)]
    return {"task": TASK.model_dump(mode="json"), "examples": examples, **more}


def post_seeds(client: httpx.Client, **more: Any) -> str:
    reply = client.post("/seeds", json=seed_body(**more))
    assert reply.status_code == 201, reply.text
    return str(reply.json()["id"])


def post_job(client: httpx.Client, seeds: str, **more: Any) -> dict[str, Any]:
    reply = client.post("/jobs", json={"seeds": seeds, "settings": SETTINGS, **more})
    assert reply.status_code == 202, reply.text
    found: dict[str, Any] = reply.json()
    return found


def finished(client: httpx.Client, job: str, seconds: float = 120.0) -> dict[str, Any]:
    """The job at its end."""

    def ended() -> Any:
        found = client.get(f"/jobs/{job}").json()
        return found if found["status"] in {"succeeded", "failed", "cancelled"} else None

    found: dict[str, Any] = wait_for(ended, seconds)
    return found


def events_of(client: httpx.Client, job: str) -> list[dict[str, Any]]:
    """Every event, page by page."""
    events: list[dict[str, Any]] = []
    while True:
        page = client.get(f"/jobs/{job}/events", params={"after": events[-1]["id"] if events else 0}).json()
        events += page["data"]
        if not page["has_more"]:
            return events


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True)

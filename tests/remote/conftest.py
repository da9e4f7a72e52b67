"""The remote engine on a canned server, with a tokenizer of one id a character."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from afdc.engine_config import EngineConfig
from afdc_server.remote import http
from afdc_server.remote.backend import HttpBackend
from afdc_server.remote.engine import RemoteEngine, remote_settings
from afdc_server.remote.meeting import SAMPLE, Wanted
from afdc_server.remote.server import RemoteServer
from tests.fakes.served import INFO, Letters
from tests.remote.canned import MODEL, CannedServer, canned

Connect = Callable[..., AbstractAsyncContextManager[RemoteEngine]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses short enough for tests."""
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr("afdc_server.remote.backend.STARTING_PAUSE", 0.05)


@pytest_asyncio.fixture
async def server() -> AsyncIterator[CannedServer]:
    async with canned() as one:
        yield one


@pytest.fixture
def connect(tmp_path: Path) -> Connect:
    """Makes an engine on a server; keyword arguments are those of RemoteServer, `config` those of EngineConfig."""

    @asynccontextmanager
    async def make(
        server: CannedServer, config: dict[str, Any] | None = None, started: bool = True, **options: Any
    ) -> AsyncIterator[RemoteEngine]:
        told = EngineConfig(**{"max_loras": 2, "max_lora_rank": 8, "hang_timeout_s": 20, **(config or {})})
        where = RemoteServer(server.url, **{"patience_s": 5, "tries": 3, **options})
        settings = remote_settings(told, where)
        wanted = Wanted(MODEL, Path("folder"), where.served_name, tuple(map(ord, SAMPLE)))
        log = tmp_path / "logs" / "engine.log"
        create = partial(HttpBackend, where, wanted, settings.max_in_flight, told.hang_timeout_s, log)
        engine = RemoteEngine(create, Letters(), replace(INFO, device="remote"), settings, log)
        if started:
            await engine.start()
        try:
            yield engine
        finally:
            await engine.close()

    return make

"""Which engine the settings ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from afdc.config import RunConfig
from afdc.engine_config import EngineConfig
from afdc.errors import EngineError, UsageError
from afdc_pipeline.seams import GenerateRequest, Sampling
from afdc_server.engines import open_engine
from afdc_server.local.request import check_settings
from afdc_server.models import ModelRef
from tests.remote.canned import CannedServer


async def test_a_url_is_the_server_that_is_asked_with_the_key_of_the_environment(
    server: CannedServer, model: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.served, server.api_key, server.tokenises = "prod", "k3y", False
    monkeypatch.setenv("AFDC_ENGINE_API_KEY", "k3y")
    config = EngineConfig(url=f"{server.url}/v1", served_model="prod", patience_s=5)
    engine = open_engine(model, config, tmp_path)
    try:
        assert (await engine.start()).device == "remote"
        request = GenerateRequest("0", "Hello", 2, Sampling(temperature=1.0, max_tokens=4))
        assert [len(answer.completions) async for answer in engine.generate([request])] == [2]
    finally:
        await engine.close()


async def test_without_the_key_the_message_names_the_variable(
    server: CannedServer, model: ModelRef, tmp_path: Path
) -> None:
    server.api_key = "k3y"
    engine = open_engine(model, EngineConfig(url=server.url, patience_s=5), tmp_path)
    with pytest.raises(EngineError, match="AFDC_ENGINE_API_KEY"):
        await engine.start()
    await engine.close()


def test_what_is_no_url_is_refused_before_anything_starts() -> None:
    with pytest.raises(UsageError, match="is no URL"):
        check_settings(RunConfig(engine=EngineConfig(url="gpu-box:8000")))

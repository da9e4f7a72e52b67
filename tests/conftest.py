"""Fixtures shared by all tests: the packaged model and one real engine for the whole session."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from afdc.config import EngineConfig
from afdc_pipeline.seams import Engine
from afdc_server.models import ModelRef, resolve_model

ENGINE_CONFIG = EngineConfig(device="cpu", dtype="float32", max_model_len=512, max_loras=3, max_lora_rank=16)


@pytest.fixture(scope="session")
def model() -> ModelRef:
    """The packaged SmolLM2-135M-Instruct."""
    return resolve_model("", "cpu")


@pytest_asyncio.fixture(scope="session")
async def engine(model: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    """A started vLLM engine on the CPU in float32, shared by every test that is marked `engine`."""
    pytest.importorskip("vllm")
    from afdc_server.engine.build import make_engine

    made = make_engine(model, ENGINE_CONFIG, tmp_path_factory.mktemp("engine-logs"))
    await made.start()
    yield made
    await made.close()

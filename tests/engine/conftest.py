"""Real adapters on the packaged model, and what transformers and PEFT say about them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from afdc.prompting import PromptCodec
from afdc.task import Task
from afdc_pipeline.seams import Engine
from afdc_server.models import ModelRef
from tests.reference import load_base, save_adapter, sentiment_task

PROBES = ("My card is gone.", "What do you charge for euros?")


@pytest.fixture(scope="session")
def task() -> Task:
    return sentiment_task()


@pytest.fixture(scope="session")
def codec(model: ModelRef, task: Task) -> PromptCodec:
    from afdc_server.engine.build import load_tokenizer

    return PromptCodec(load_tokenizer(model.path), task)


@pytest.fixture(scope="session")
def network(model: ModelRef) -> Any:
    """The base model in transformers, float32."""
    return load_base(model)


@pytest.fixture(scope="session")
def adapters(
    tmp_path_factory: pytest.TempPathFactory, network: Any, model: ModelRef, codec: PromptCodec
) -> tuple[Path, Path]:
    """Two adapter folders with different random weights."""
    root = tmp_path_factory.mktemp("adapters")
    first, second = (save_adapter(root / f"a{i}", network, model, codec, PROBES, seed=i) for i in (1, 2))
    return first, second


@pytest_asyncio.fixture
async def loaded(engine: Engine, adapters: tuple[Path, Path]) -> AsyncIterator[list[str]]:
    """Names of both adapters, live for the length of a test."""
    names = [(await engine.load_adapter(folder)).name for folder in adapters]
    yield names
    for name in names:
        await engine.unload_adapter(name)

"""Fixtures shared by all tests: the packaged model and one real engine for the whole session."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from afdc.engine_config import EngineConfig
from afdc_pipeline.seams import Engine
from afdc_server.models import ModelRef, resolve_model

ENGINE_CONFIG = EngineConfig(device="cpu", dtype="float32", max_model_len=512, max_loras=3, max_lora_rank=16)


LONGEST = (
    "tests/test_end_to_end.py",
    "tests/service/test_real.py",
    "tests/trainer/test_kill.py",
    "tests/trainer/test_run.py",
    "tests/trainer/test_average.py",
    "tests/trainer/test_ranks.py",
    "tests/engine/test_faults.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Each of several test processes has cores of its own, and so have the engines and trainers that it starts.

    Two engines with a thread on every core would spin in each other's way: vLLM's threads wait for one another busily.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job hands that on to all it starts
        signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = getattr(config, "workerinput", None)
    if worker is None:
        return
    place, count = int(worker["workerid"].removeprefix("gw")), int(worker["workercount"])
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= count:
        os.sched_setaffinity(0, cores[place::count])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take minutes by themselves begin, so that no process is left with one of them at the end."""
    rank = {file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))


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

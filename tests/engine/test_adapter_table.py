"""Who holds an adapter, what a cancelled or failed load leaves behind, and probes that are not what they should be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from afdc.adapter import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, AdapterManifest, Probe
from afdc.errors import AdapterError
from afdc.files import sha256_file
from afdc.task import Task
from afdc_pipeline.seams import GenerateRequest, Sampling
from afdc_server.engine.adapters import AdapterTable, check_files, check_probes
from afdc_server.engine.engine import SupervisedEngine
from tests.fakes.backend import World
from tests.fakes.served import started

FOLDER = Path("adapter")


def manifest(*probes: Probe) -> AdapterManifest:
    task = Task.model_validate({"labels": ["a", "b"]})
    fields = {"name": "one", "job": "j", "round": 0, "base_model": "m", "base_revision": "r", "rank": 8}
    return AdapterManifest.model_validate({**fields, "task": task, "template_hash": "x", "probes": probes, "files": {}})


@contextlib.asynccontextmanager
async def served(world: World) -> AsyncIterator[tuple[SupervisedEngine, AdapterTable]]:
    async with started(world) as engine:
        table = engine._adapters
        with table.reserve("one", FOLDER) as slot:
            table.activate(slot, manifest())
        yield engine, table


async def test_an_unload_waits_for_the_whole_batch() -> None:
    asks = [GenerateRequest(str(i), "x", 1, Sampling(max_tokens=1), "one") for i in range(4)]
    async with served(World(seconds=0.02)) as (engine, table):
        answers = engine.generate(asks)
        first = await anext(answers)
        unloading = asyncio.ensure_future(engine.unload_adapter("one"))
        rest = [answer async for answer in answers]
        assert not any(answer.error for answer in [first, *rest])
        assert len(rest) == 3
        await asyncio.wait_for(unloading, 5)
        assert table.find("one") is None


async def test_a_cancelled_unload_leaves_the_adapter_or_frees_its_place() -> None:
    async with served(World()) as (engine, table):
        with table.use("one"):
            unloading = asyncio.ensure_future(engine.unload_adapter("one"))
            await asyncio.sleep(0.05)
            unloading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await unloading
            assert table.find("one") is not None
        await engine.unload_adapter("one")
        with table.reserve("two", FOLDER), table.reserve("three", FOLDER):
            pass


@pytest.mark.parametrize("logprobs", [(-1.0,), (1e6, -1.0)], ids=["too few", "overflow"])
def test_malformed_probes_are_an_adapter_error(logprobs: tuple[float, ...]) -> None:
    with pytest.raises(AdapterError, match="malformed"):
        check_probes(manifest(Probe(text="x", logprobs=logprobs)), np.log([[0.5, 0.5]]), 0.1)


def test_what_the_tolerance_allows_may_swap_the_labels() -> None:
    probe = Probe(text="x", logprobs=(float(np.log(0.55)), float(np.log(0.45))))
    check_probes(manifest(probe), np.log([[0.45, 0.55]]), 0.15)
    with pytest.raises(AdapterError, match="another label"):
        check_probes(
            manifest(Probe(text="x", logprobs=(float(np.log(0.6)), float(np.log(0.4))))), np.log([[0.49, 0.51]]), 0.15
        )


def test_a_header_without_types_is_an_adapter_error(tmp_path: Path) -> None:
    header = json.dumps({"q.lora_A.weight": {"shape": [8, 1], "data_offsets": [0, 16]}}).encode()
    weights, config = tmp_path / WEIGHTS_FILE, tmp_path / CONFIG_FILE
    weights.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    config.write_text(json.dumps({"peft_type": "LORA", "target_modules": ["q"], "r": 8, "lora_alpha": 16}))
    whole = manifest().model_copy(update={"files": {path.name: sha256_file(path) for path in (weights, config)}})
    (tmp_path / MANIFEST_FILE).write_text(whole.model_dump_json())
    with pytest.raises(AdapterError, match="damaged"):
        check_files(tmp_path, "m", "r", 8)

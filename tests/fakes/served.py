"""An engine without a model for the tests of its faults: one token id a letter, and a backend that fails on cue."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from afdc.adapter import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, AdapterManifest, Probe
from afdc.engine_config import EngineConfig
from afdc.files import sha256_file
from afdc.task import Task
from afdc_pipeline.seams import EngineInfo
from afdc_server.engine.engine import SupervisedEngine
from afdc_server.engine.settings import resolve_settings
from tests.fakes.backend import FakeBackend, World

INFO = EngineInfo("m", Path("m"), "r", "0", "cpu", "float32", 64, False, 1)
TASK = Task.model_validate({"labels": ["a", "b"]})


class Letters:
    """A tokenizer of one id a character."""

    chat_template = None
    eos_token_id = 0
    bos_token_id = None

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> str:
        raise AssertionError("there is no template")

    def decode(self, token_ids: Any, **options: Any) -> str:
        return "".join(map(chr, token_ids))


@contextlib.asynccontextmanager
async def started(
    world: World, config: EngineConfig | None = None, device: str = "cpu"
) -> AsyncIterator[SupervisedEngine]:
    """A supervised engine on fake backends; at most one request is in flight."""
    settings = replace(resolve_settings(config or EngineConfig(max_loras=2), 64, device), max_in_flight=1)
    engine = SupervisedEngine(lambda: FakeBackend(world), Letters(), INFO, settings, Path("engine.log"))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def write_adapter(folder: Path, engine: SupervisedEngine, seed: float = 1.0) -> AdapterManifest:
    """A folder that passes every check, with the probes that a FakeBackend answers."""
    folder.mkdir(parents=True)
    values = struct.pack("<8f", *[seed] * 8)
    tensors = {
        f"q.lora_{side}.weight": {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 32]}
        for side, shape, at in (("A", [8, 1], 0), ("B", [1, 8], 32))
    }
    header = json.dumps(tensors).encode()
    (folder / WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(header)) + header + values * 2)
    config = {"peft_type": "LORA", "target_modules": ["q"], "r": 8, "lora_alpha": 16}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    manifest = AdapterManifest(
        name=folder.name,
        job="j",
        round=0,
        base_model="m",
        base_revision="r",
        rank=8,
        task=TASK,
        template_hash=engine.template_hash(TASK),
        probes=(Probe(text="x", logprobs=(-97.0, -98.0)),),
        files={name: sha256_file(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE)},
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json())
    return manifest

"""Adapter folders: what is refused and why, and what loading, swapping and unloading do to the answers."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import PeftModel
from safetensors.numpy import load_file, save_file

from afdc.adapter import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from afdc.errors import AdapterError
from afdc.files import sha256_file
from afdc.prompting import PromptCodec
from afdc.task import Task
from afdc_pipeline.seams import Engine, GenerateRequest, Sampling
from tests.reference import teacher_forced

pytestmark = pytest.mark.engine

TEXTS = ("I lost my card", "What is the rate for dollars?")


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rehash(folder: Path) -> None:
    """Make the manifest agree with the files again: the damage must be found by another check."""
    rewrite_manifest(folder, files={name: sha256_file(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE)})


def set_option(folder: Path, **options: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **options}))
    rehash(folder)


def truncate(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def truncate_and_rehash(folder: Path) -> None:
    truncate(folder)
    rehash(folder)


def put_nan(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name].copy()
    tensors[name][0, 0] = np.nan
    save_file(tensors, folder / WEIGHTS_FILE)
    rehash(folder)


def swap_for_pickle(folder: Path) -> None:
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model.bin")
    files = {name: sha256_file(folder / name) for name in (CONFIG_FILE, "adapter_model.bin")}
    rewrite_manifest(folder, files=files)


def reach_outside(folder: Path) -> None:
    files = json.loads((folder / MANIFEST_FILE).read_text())["files"]
    rewrite_manifest(folder, files={**files, "../secret": "0" * 64})


def lie_in_the_probes(folder: Path) -> None:
    probes = json.loads((folder / MANIFEST_FILE).read_text())["probes"]
    for probe in probes:
        probe["logprobs"] = [-20.0, -20.0, -20.0, -0.01]
    rewrite_manifest(folder, probes=probes)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "hash"),
    "one bit": (flip_a_byte, "hash"),
    "truncated, rehashed": (truncate_and_rehash, "truncated"),
    "nan": (put_nan, "NaN"),
    "pickle": (swap_for_pickle, "lists no"),
    "traversal": (reach_outside, "not a plain file"),
    "extra file": (lambda f: (f / "run.py").write_text("") and None, "unexpected files"),
    "auto_mapping": (lambda f: set_option(f, auto_mapping={"base_model_class": "X"}), "auto_mapping"),
    "regex targets": (lambda f: set_option(f, target_modules=".*_proj"), "not a pattern"),
    "dora": (lambda f: set_option(f, use_dora=True), "use_dora"),
    "rank in config": (lambda f: set_option(f, r=16), "rank"),
    "rank in manifest": (lambda f: rewrite_manifest(f, rank=16), "rank"),
    "another base": (lambda f: rewrite_manifest(f, base_revision="other"), "was trained on"),
    "another template": (lambda f: rewrite_manifest(f, template_hash="0" * 64), "template"),
    "untrue probes": (lie_in_the_probes, "probes"),
    "no manifest": (lambda f: (f / MANIFEST_FILE).unlink(), "missing"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE.keys())
async def test_a_damaged_adapter_is_refused(
    engine: Engine, adapters: tuple[Path, Path], tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    folder = shutil.copytree(adapters[0], tmp_path / "adapter")
    damage(folder)
    with pytest.raises(AdapterError, match=reason):
        await engine.load_adapter(folder)


async def test_refused_adapters_leave_their_slots_free(
    engine: Engine, adapters: tuple[Path, Path], tmp_path: Path, task: Task
) -> None:
    bad = shutil.copytree(adapters[0], tmp_path / "bad")
    lie_in_the_probes(bad)
    for _ in range(5):
        with pytest.raises(AdapterError, match="probes"):
            await engine.load_adapter(bad)
    name = (await engine.load_adapter(adapters[0])).name
    assert np.isfinite((await engine.score(TEXTS, task, name)).logprobs).all()
    await engine.unload_adapter(name)


async def test_slots_are_bounded(engine: Engine, adapters: tuple[Path, Path], tmp_path: Path) -> None:
    names = []
    for index in range(3):
        folder = shutil.copytree(adapters[0], tmp_path / str(index))
        rewrite_manifest(folder, name=f"copy-{index}")
        names.append((await engine.load_adapter(folder)).name)
    with pytest.raises(AdapterError, match="slots are taken"):
        await engine.load_adapter(adapters[1])
    for name in names:
        await engine.unload_adapter(name)
    await engine.unload_adapter((await engine.load_adapter(adapters[1])).name)


async def test_loading_the_same_folder_twice_is_one_adapter(engine: Engine, adapters: tuple[Path, Path]) -> None:
    first, second = await asyncio.gather(*(engine.load_adapter(adapters[0]) for _ in range(2)))
    assert first == second
    await engine.unload_adapter(first.name)
    await engine.unload_adapter(first.name)


async def test_after_a_swap_no_answer_comes_from_the_old_weights(
    engine: Engine, adapters: tuple[Path, Path], network: Any, codec: PromptCodec, task: Task
) -> None:
    for folder in (*adapters, adapters[0]):
        name = (await engine.load_adapter(folder)).name
        served = (await engine.score(TEXTS, task, name)).logprobs
        await engine.unload_adapter(name)
        tuned = PeftModel.from_pretrained(network, folder)
        expected = teacher_forced(tuned, codec, TEXTS)
        tuned.unload()
        np.testing.assert_allclose(served, expected, atol=1e-3)


async def test_unloading_waits_for_running_requests(engine: Engine, adapters: tuple[Path, Path]) -> None:
    name = (await engine.load_adapter(adapters[0])).name
    ask = GenerateRequest("a", "Tell me a long story", n=2, sampling=Sampling(max_tokens=40), adapter=name)
    answers = engine.generate([ask])
    running = asyncio.ensure_future(anext(answers))
    await asyncio.sleep(0.3)
    unloading = asyncio.ensure_future(engine.unload_adapter(name))
    done = await running
    await unloading
    assert done.completions
    assert not done.error
    with pytest.raises(AdapterError, match="no adapter"):
        await engine.score(["x"], Task(labels=("a", "b")), name)

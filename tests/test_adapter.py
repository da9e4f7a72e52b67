"""What `verify_adapter` refuses before anything is loaded."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from afdc.adapter import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, publish_adapter, read_manifest, verify_adapter
from afdc.errors import AdapterError
from afdc.files import sha256_file

A, B = "q_proj.lora_A.weight", "q_proj.lora_B.weight"


def entry(start: int, shape: tuple[int, int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, start + 128]}


GOOD = {A: entry(0, (8, 4)), B: entry(128, (4, 8))}


def build(folder: Path, header: dict[str, Any] = GOOD, alpha: Any = 16, **manifest: Any) -> Path:
    text = json.dumps(header).encode()
    (folder / WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(text)) + text + bytes(256))
    config = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"], "lora_alpha": alpha}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    files = {name: sha256_file(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
    facts = {"name": "a", "job": "j", "round": 0, "base_model": "m", "base_revision": "r", "rank": 8, "files": files}
    facts |= {"task": {"labels": ["a", "b"]}, "template_hash": "h"}
    (folder / MANIFEST_FILE).write_text(json.dumps({**facts, **manifest}))
    return folder


def test_a_whole_adapter_is_accepted(tmp_path: Path) -> None:
    probes = [{"text": "x", "logprobs": [1e-7, -20.0]}]
    assert verify_adapter(build(tmp_path, probes=probes, prior=[-0.7, -0.7])).rank == 8


@pytest.mark.parametrize(
    "damage",
    [
        {"prior": [0.0]},
        {"prior": [0.0, float("nan")]},
        {"probes": [{"text": "x", "logprobs": [-1.0]}]},
        {"probes": [{"text": "x", "logprobs": [-1.0, 0.1]}]},
        {"probes": [{"text": "x", "logprobs": [-1.0, float("-inf")]}]},
        {"alpha": 0},
        {"alpha": float("nan")},
        {"alpha": True},
        {"alpha": 5000},
        {"alpha": None},
        {"header": {A: entry(0, (8, 4)), B: entry(128, (4, 8), "I32")}},
        {"header": {A: entry(0, (8, 4)), B: {"shape": [4, 8], "data_offsets": [128, 256]}}},
        {"header": {A: entry(0, (8, 5)), B: entry(128, (4, 8))}},
        {"header": {A: entry(0, (8, 4)), B: {"dtype": "F32", "shape": [4, 8], "data_offsets": [256]}}},
        {"header": {A: entry(0, (8, 4)), "k_proj.lora_B.weight": entry(128, (4, 8))}},
    ],
)
def test_contradictions_are_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    with pytest.raises(AdapterError):
        verify_adapter(build(tmp_path, **damage))


def made(tmp_path: Path) -> Path:
    (tmp_path / "new").mkdir()
    return build(tmp_path / "new")


@pytest.mark.parametrize("name", [CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"{}")])
def test_a_damaged_folder_makes_room_and_is_kept(tmp_path: Path, name: str, damage: Callable[[Path], Any]) -> None:
    final = tmp_path / "adapters" / "a"
    for number in (1, 2):
        publish_adapter(made(tmp_path), final)
        damage(final / name)
        assert publish_adapter(made(tmp_path), final) == final.with_name(f".damaged-a-{number}")
        verify_adapter(final)
        assert final.with_name(f".damaged-a-{number}").is_dir()


def test_a_whole_folder_of_the_same_weights_stays(tmp_path: Path) -> None:
    final = tmp_path / "adapters" / "a"
    assert publish_adapter(made(tmp_path), final) is None
    inode = final.stat().st_ino
    assert publish_adapter(made(tmp_path), final) is None
    assert final.stat().st_ino == inode
    assert [path.name for path in final.parent.iterdir()] == ["a"]


def test_a_whole_folder_of_the_same_files_has_the_new_manifest(tmp_path: Path) -> None:
    final = tmp_path / "adapters" / "a"
    publish_adapter(made(tmp_path), final)
    again = made(tmp_path)
    manifest = read_manifest(again).model_copy(update={"temperature": 2.5})
    (again / MANIFEST_FILE).write_text(manifest.model_dump_json())
    assert publish_adapter(again, final) is None
    assert verify_adapter(final).temperature == 2.5

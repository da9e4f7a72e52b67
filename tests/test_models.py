"""Choosing, checking and fingerprinting a base model."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from afdc.errors import ModelError, UsageError
from afdc_server import models, packaged
from afdc_server.models import ModelRef, detect_device, resolve_model

SHAPES = {"embed": [10, 4], "proj": [4, 4]}
PARAMETERS = 56


def write_safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    header: dict[str, Any] = {}
    offset = 0
    for name, (rows, columns) in shapes.items():
        size = rows * columns * 2
        header[name] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(offset))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (target / "tokenizer.json").write_text("{}")
    write_safetensors(target / "model.safetensors", SHAPES)
    return target


def test_local_folder(folder: Path) -> None:
    ref = resolve_model(str(folder), "cpu")
    assert ref == ModelRef(str(folder), folder, ref.revision, PARAMETERS)
    assert resolve_model(str(folder), "cuda").revision == ref.revision


def test_revision_follows_config_and_weights(folder: Path) -> None:
    first = resolve_model(str(folder), "cpu").revision
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    second = resolve_model(str(folder), "cpu").revision
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "rope_theta": 2}))
    third = resolve_model(str(folder), "cpu").revision
    assert len({first, second, third}) == 3


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", b"{broken", "cannot read"),
        ("config.json", b"[]", "not a JSON object"),
        ("config.json", b'{"architectures": ["BertForMaskedLM"]}', "BertForMaskedLM"),
        ("config.json", b'{"architectures": ["XForCausalLM"], "is_encoder_decoder": true}', "not a causal"),
        ("config.json", b"{}", "no architecture"),
        ("tokenizer.json", None, "no tokenizer"),
        ("model.safetensors", None, "no \\*.safetensors"),
        ("model.safetensors", b"", "damaged"),
        ("model.safetensors", b"\xff" * 40, "damaged"),
        ("model.safetensors", (2).to_bytes(8, "little") + b"[]", "damaged"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "model-2.safetensors"}}', "lacks model-2"),
        ("model.safetensors.index.json", b"[]", "cannot read"),
    ],
)
def test_unusable_folder(folder: Path, file: str, content: bytes | None, message: str) -> None:
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        resolve_model(str(folder), "cpu")
    assert caught.value.remedy


def test_torn_download(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelError, match=r"damaged: .* bytes long"):
        resolve_model(str(folder), "cpu")


def test_adapter_folder_is_named_as_one(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(ModelError, match="is an adapter"):
        resolve_model(str(folder), "cpu")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "nowhere", "a b/c"])
def test_name_that_is_nothing(name: str) -> None:
    with pytest.raises(ModelError, match="no model folder"):
        resolve_model(name, "cpu")


def test_hub_model_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = "from afdc_server.models import resolve_model; resolve_model('', 'cuda')"
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert "ModelError: cannot fetch Qwen/Qwen3-4B-Instruct-2507" in done.stderr
    assert packaged.PACKAGED_NAME in done.stderr


def test_packaged_model_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AFDC_CACHE", str(tmp_path))
    monkeypatch.setattr(packaged, "PACKAGE", "no_such_package_here")
    with pytest.raises(ModelError, match="not installed"):
        resolve_model("", "cpu")


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AFDC_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert packaged.cache_root() == tmp_path / "afdc"
    monkeypatch.setenv("AFDC_CACHE", str(tmp_path / "own"))
    assert packaged.cache_root() == tmp_path / "own"


@pytest.mark.trainer
def test_packaged_model() -> None:
    ref = resolve_model("", "cpu")
    assert ref.name == packaged.PACKAGED_NAME
    assert ref.parameters == 134_515_008
    assert resolve_model("", "cpu") == ref


def _ask(results: Any) -> None:
    results.put(str(packaged.packaged_model()))


@pytest.mark.slow
@pytest.mark.trainer
def test_two_processes_convert_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AFDC_CACHE", str(tmp_path))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_ask, args=(results,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert len({results.get(timeout=300) for _ in workers}) == 1
    for worker in workers:
        worker.join()
    left = {path.name for path in (tmp_path / "models").iterdir()}
    assert left == {packaged.PACKAGED_NAME, f".{packaged.PACKAGED_NAME}.lock"}
    assert resolve_model("", "cpu").parameters == 134_515_008


def test_detect_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert detect_device("cpu") == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect_device("auto") == "cpu"
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES"):
        detect_device("cuda")


def test_detect_device_needs_the_cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(models, "_installed", lambda _: False)
    assert detect_device("auto") == "cpu"
    monkeypatch.setattr(models, "_installed", lambda _: True)
    assert detect_device("auto") == "cuda"


def test_detect_device_imports_no_torch() -> None:
    script = "import sys, afdc_server.models as m; m.detect_device('auto'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_copied_folder_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    os.utime(copy / "model.safetensors", (1, 1))
    assert resolve_model(str(copy), "cpu").revision == resolve_model(str(folder), "cpu").revision

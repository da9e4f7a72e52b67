"""What "auto" means on GPUs of every age, without one, and on CPUs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from afdc.cli import main
from afdc.config import TrainConfig
from afdc.engine_config import EngineConfig
from afdc.precision import describe_precision, engine_dtype, plan_precision, trainer_dtype
from afdc_server import cpu, models
from afdc_server.engine.settings import resolve_settings
from afdc_server.gpu import compute_capability, lowest_capability
from afdc_trainer.model import choose_dtype

EXAMPLES = Path(__file__).parents[1] / "examples"
LISTING = "0, GPU-aaaa-1, 9.0\n1, GPU-bbbb-2, 7.5\n2, GPU-cccc-3, [N/A]\n"


@pytest.mark.parametrize(
    ("capability", "engine", "trainer"),
    [
        ((7, 0), "float16", "float32"),
        ((7, 5), "float16", "float32"),
        ((8, 0), "bfloat16", "bfloat16"),
        ((9, 0), "bfloat16", "bfloat16"),
        ((12, 0), "bfloat16", "bfloat16"),
    ],
)
def test_auto_follows_the_capability(
    capability: tuple[int, int], engine: str, trainer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (engine_dtype(capability), trainer_dtype(capability)) == (engine, trainer)
    assert resolve_settings(EngineConfig(), 512, "cuda", capability).dtype == engine
    assert resolve_settings(EngineConfig(dtype="float32"), 512, "cuda", capability).dtype == "float32"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_dtype(TrainConfig(), torch.device("cuda")) == getattr(torch, trainer)


def test_an_unknown_gpu_is_taken_for_a_new_one() -> None:
    assert (engine_dtype(None), trainer_dtype(None)) == ("bfloat16", "bfloat16")


def test_the_difference_is_said() -> None:
    assert describe_precision((8, 6)) == "compute capability 8.6: bfloat16"
    assert "7.5: float16 in the engine and float32 in the trainer" in describe_precision((7, 5))
    assert plan_precision("auto", "auto", (9, 0)) == "bfloat16 in the engine, bfloat16 in the trainer"
    said = plan_precision("auto", "auto", (7, 0))
    assert said == "float16 in the engine, float32 in the trainer, for this GPU has no bfloat16"


def test_the_lowest_visible_gpu_counts() -> None:
    assert lowest_capability(LISTING, {}) == (7, 5)
    assert lowest_capability(LISTING, {"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}) == (9, 0)
    assert lowest_capability(LISTING, {"CUDA_VISIBLE_DEVICES": "0"}) == (7, 5)
    ordered = {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert lowest_capability(LISTING, ordered) == (9, 0)
    assert lowest_capability("", {}) is None
    assert lowest_capability("No devices were found\n", {}) is None


@pytest.fixture
def old_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose driver knows one GPU of compute capability 7.5."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, GPU-bbbb-2, 7.5'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(models, "_why_no_cuda", lambda: "")


@pytest.mark.usefixtures("old_gpu")
def test_doctor_and_plan_name_what_an_old_gpu_gets(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = EXAMPLES / "support_tickets" / "seeds.jsonl"
    for arguments in (["doctor"], ["run", "--seeds", str(seeds), "--out", str(tmp_path / "out"), "--dry-run"]):
        monkeypatch.setattr(sys, "argv", ["afdc", *arguments])
        with pytest.raises(SystemExit):
            main()
    out = capsys.readouterr().out
    assert "NVIDIA GPU, compute capability 7.5: float16 in the engine and float32 in the trainer" in out
    assert "float16 in the engine, float32 in the trainer, for this GPU has no bfloat16" in out
    assert compute_capability() == (7, 5)


@pytest.mark.parametrize(
    ("listing", "found"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", False),
        ("flags\t\t: fpu avx512f avx512_bf16\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu avx512f avx512_bf16\nflags\t\t: fpu avx512f\n", False),
        ("flags\t\t: avx512f amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("Features\t: fp asimd\n", False),
        ("processor\t: 0\n", True),
    ],
)
def test_a_cpu_says_whether_it_has_bfloat16(listing: str, found: bool, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(listing)
    assert cpu.has_bfloat16(info) is found


def test_a_cpu_that_does_not_tell_is_taken_for_a_new_one(tmp_path: Path) -> None:
    assert cpu.has_bfloat16(tmp_path / "none")


@pytest.mark.parametrize(("has", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_the_engine_follows_the_cpu(has: bool, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: has)
    assert resolve_settings(EngineConfig(), 512, "cpu").dtype == dtype
    assert resolve_settings(EngineConfig(dtype="bfloat16"), 512, "cpu").dtype == "bfloat16"


def test_this_cpu_is_judged_as_torch_judges_it() -> None:
    assert cpu.has_bfloat16() == bool(torch.cpu.get_capabilities().get("avx512_bf16", True))

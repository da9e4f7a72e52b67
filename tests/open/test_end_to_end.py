"""`afdc run` on an open task for real: vLLM samples answers, the trainer learns them, the probe of an answer passes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from afdc.adapter import read_manifest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "product_names"
SMALL = ["--variants", "2", "--rounds", "1", "--set", "loop.members=1", "--set", "train.seed_epochs=4"]

pytestmark = [pytest.mark.engine, pytest.mark.trainer, pytest.mark.slow]


def cut(name: str, folder: Path, rows: int) -> str:
    path = folder / name
    path.write_text("".join((EXAMPLE / name).read_text().splitlines(keepends=True)[:rows]))
    return str(path)


def afdc(*arguments: str) -> Any:
    done = subprocess.run([sys.executable, "-m", "afdc", *arguments], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_seeds_become_answers_and_an_adapter_that_gives_them(tmp_path: Path) -> None:
    files = ["--seeds", cut("seeds.jsonl", tmp_path, 8), "--eval", cut("eval.jsonl", tmp_path, 4)]
    out = str(tmp_path / "out")
    result = afdc("run", "--json", *files, "--task", str(EXAMPLE / "task.json"), "--out", out, *SMALL)
    assert result["status"] == "succeeded"
    assert result["rounds"][1]["activated"]
    assert result["eval"]["token_f1"]["final"] > result["eval"]["token_f1"]["base"]
    manifest = read_manifest(tmp_path / "out" / "adapter")
    assert all(probe.answer and len(probe.logprobs) == 1 for probe in manifest.probes)
    record = afdc("predict", "--json", "--adapter", out, "The toaster burns every slice.")
    assert record["answer"]
    assert 0 < record["confidence"] <= 1

"""`afdc run` for real: vLLM, the packaged model, LoRA training, a swap; killed in the middle and run again.

The seeds are the Chinese example, cut down: nothing on the way may assume English.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from peft import PeftModel

from afdc.adapter import read_manifest
from afdc.prompting import PromptCodec
from afdc.result import Evaluation
from afdc_pipeline import gate
from afdc_server.engine.build import load_tokenizer
from afdc_server.ledger import open_sqlite
from afdc_server.ledger.schema import stages
from afdc_server.models import resolve_model
from tests.reference import load_base, teacher_forced

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "zh_reviews"
SMALL = ["--variants", "2", "--rounds", "1", "--set", "loop.members=1", "--set", "train.seed_epochs=2"]
SMALL += ["--set", "train.epochs=1", "--set", "encoder.seed_epochs=2", "--set", "encoder.epochs=1"]
DEADLINE_S = 1500  # a guard against a hang, also where other jobs hold the cores

pytestmark = [pytest.mark.engine, pytest.mark.trainer]


def cut(source: Path, target: Path, per_label: int) -> Path:
    """The first rows of each label."""
    rows, taken = [json.loads(line) for line in source.read_text().splitlines()], dict[str, int]()
    with target.open("w") as out:
        for row in rows:
            taken[row["label"]] = taken.get(row["label"], 0) + 1
            if taken[row["label"]] <= per_label:
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return target


def command(root: Path, out: str) -> list[str]:
    seeds, gold = cut(EXAMPLE / "seeds.jsonl", root / "s.jsonl", 2), cut(EXAMPLE / "eval.jsonl", root / "e.jsonl", 1)
    files = ["--seeds", str(seeds), "--eval", str(gold), "--task", str(EXAMPLE / "task.json"), "--out", str(root / out)]
    return [sys.executable, "-m", "afdc", "run", "--json", *files, *SMALL]


def kill_after(arguments: list[str], out: Path, stage: str) -> None:
    """Start the run and kill -9 it, and nothing else, once the ledger holds `stage`."""
    run = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children: list[psutil.Process] = []
    deadline = time.monotonic() + DEADLINE_S
    while stage not in finished_stages(out):
        assert run.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.3)
    children = psutil.Process(run.pid).children(recursive=True)
    assert children, "engine and trainer are processes of their own"
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, "engine and trainer end with the run"


def finished_stages(out: Path) -> set[str]:
    ledger = out / "state" / "ledger.db"
    if not ledger.exists():
        return set()
    engine = open_sqlite(ledger)
    with engine.connect() as connection:
        found = {row.stage for row in connection.execute(stages.select())}
    engine.dispose()
    return found


def run_to_the_end(arguments: list[str]) -> dict[str, Any]:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def dataset_rows(out: Path) -> list[tuple[str, str, str]]:
    from datasets import load_dataset

    rows = load_dataset(str(out / "dataset"), split="train")
    return [(row["id"], row["text"], row["label"]) for row in rows]


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that was killed while it trained, and then finished by the same command."""
    root = tmp_path_factory.mktemp("run")
    arguments = command(root, "out")
    kill_after(arguments, root / "out", "eval-base")
    return root / "out", run_to_the_end(arguments)


def test_a_killed_run_ends_whole(killed_run: tuple[Path, dict[str, Any]]) -> None:
    out, result = killed_run
    assert result["status"] == "succeeded"
    assert [one["round"] for one in result["rounds"]] == [0, 1]
    seeds_only, first = result["rounds"]
    before, after = (Evaluation.model_validate(one["holdout"]) for one in result["rounds"])
    passed = gate.passes(after, before)  # on so few seeds it may go either way
    assert first["activated"] is passed
    assert read_manifest(out / "adapter").name == (first if passed else seeds_only)["adapter"]
    assert result["eval"]["n"] == 4
    assert result["usage"]["completion_tokens"] > 0
    assert len(dataset_rows(out)) == result["dataset"]["rows"] >= 8


def test_every_configuration_loads(killed_run: tuple[Path, dict[str, Any]]) -> None:
    from datasets import load_dataset

    out, result = killed_run
    for name in ("default", "messages", "prompt_completion"):
        assert len(load_dataset(str(out / "dataset"), name, split="train")) == result["dataset"]["rows"]
    assert "reason" in load_dataset(str(out / "dataset"), "rejected", split="train").column_names


def test_plain_peft_gives_the_scores_of_afdc_score(killed_run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, _ = killed_run
    source = cut(EXAMPLE / "eval.jsonl", tmp_path / "x.jsonl", 1)
    arguments = ["score", "--adapter", str(out), "--input", str(source), "--output", str(tmp_path / "y.jsonl")]
    arguments += ["--set", "engine.dtype=float32"]
    done = subprocess.run([sys.executable, "-m", "afdc", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "y.jsonl").read_text().splitlines()]
    manifest = read_manifest(out / "adapter")
    model = resolve_model("", "cpu")
    codec = PromptCodec(load_tokenizer(model.path), manifest.task)
    network = PeftModel.from_pretrained(load_base(model), out / "adapter").eval()
    expected = teacher_forced(network, codec, [row["text"] for row in rows])
    served = np.array([[row["label_logprobs"][name] for name in manifest.task.names] for row in rows])
    assert np.abs(served - expected).max() < 1e-3


@pytest.mark.slow
def test_a_killed_run_has_the_rows_of_an_undisturbed_one(
    killed_run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run_to_the_end(command(tmp_path, "other"))
    assert dataset_rows(killed_run[0]) == dataset_rows(tmp_path / "other")

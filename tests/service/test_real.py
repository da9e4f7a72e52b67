"""The command itself, with the real engine and trainer: from a bare start to predictions, and a clean end.

AFDC_CLIENT_PYTHON: another interpreter for the lines of the README, one that has nothing but the wheel (`make check`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from afdc import Client
from afdc.sdk.exceptions import ConflictApiError
from tests.service.world import wait_for

pytestmark = [pytest.mark.engine, pytest.mark.trainer]
ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "support_tickets"
CLIENT_PYTHON = str(ROOT / os.environ.get("AFDC_CLIENT_PYTHON", sys.executable))
TINY = (
    "augment.variants=1",
    "loop.rounds=1",
    "loop.members=1",
    "loop.folds=0",
    "train.seed_epochs=2",
    "train.epochs=1",
    "train.seed_repeat=1",
    "encoder.labeller=false",
    "select.trust=false",
)


@dataclass
class Process:
    """A running `afdc-server`."""

    child: subprocess.Popen[str]
    address: str
    key: str
    log: Path

    def client(self) -> Client:
        return Client(self.address, self.key, timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("real")
    command = [sys.executable, "-m", "afdc_server.service", "--port", "0", "--data", str(folder / "data")]
    command += ["--set", "engine.dtype=float32", "--set", "engine.max_model_len=512", "--set", "engine.device=cpu"]
    command += [part for setting in TINY for part in ("--set", f"jobs.{setting}")]
    with (folder / "log").open("w") as log:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder)
    assert child.stdout is not None
    told = "".join(child.stdout.readline() for _ in range(3))
    found = re.search(r"AFDC_SERVER=(\S+) AFDC_API_KEY=(\S+)", told)
    assert found, told
    try:
        wait_for(lambda: httpx.get(f"{found[1]}/readyz", timeout=60).status_code == 200, 180)
        yield Process(child, found[1], found[2], folder / "log")
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def readme_lines() -> str:
    """The client's lines in the README."""
    found = re.search(r"## As a service.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found
    return found[1]


def test_the_lines_of_the_readme(server: Process, tmp_path: Path) -> None:
    for name in ("seeds.jsonl", "task.json"):
        shutil.copy(EXAMPLE / name, tmp_path)
    environ = {"PATH": os.environ["PATH"], "AFDC_SERVER": server.address, "AFDC_API_KEY": server.key}
    done = subprocess.run(
        [CLIENT_PYTHON, "-c", readme_lines()], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in json.loads((EXAMPLE / "task.json").read_text())["labels"]
    assert (tmp_path / "dataset" / "data" / "train-00000.parquet").stat().st_size > 1000


def test_what_the_job_has_made(server: Process, tmp_path: Path) -> None:
    with server.client() as client:
        job = client.jobs.get(next(iter(client.jobs.list())).id)
        job.adapter().download(tmp_path / "adapter")
        assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size > 1000
        found = client.predict(["My card was charged twice", "The app crashes when I log in"], job=job.id)
        assert all(abs(sum(one.probs.values()) - 1) < 1e-6 for one in found)
        done = client.jobs.get(job.id).job
    assert done.status == "succeeded"
    assert done.usage.completion_tokens > 0
    assert done.usage.trainer_seconds > 0


def test_two_adapters_of_a_job_answer_each_for_itself(server: Process) -> None:
    with server.client() as client:
        job = next(iter(client.jobs.list()))
        first, last = (one.id for one in client.jobs.checkpoints(job.id))
        texts = ["Where is my parcel?"]
        answers = {name: client.predict(texts, adapter=name)[0].label_logprobs for name in (first, last)}
        assert answers[first] != answers[last]
        assert client.predict(texts, adapter=first)[0].label_logprobs == pytest.approx(answers[first], abs=1e-3)
        with pytest.raises(ConflictApiError):
            client.jobs.pause(job.id)


def test_a_preview_and_generation_come_from_the_engine(server: Process) -> None:
    with server.client() as client:
        preview = client.jobs.preview(seeds=EXAMPLE / "seeds.jsonl", task=EXAMPLE / "task.json")
        assert 0 < len(preview.data) <= 20
    headers = {"Authorization": f"Bearer {server.key}"}
    body = {"prompts": [{"prompt": "Once upon a time", "n": 2}], "sampling": {"max_tokens": 8, "seed": 1}}
    reply = httpx.post(f"{server.address}/v1/generate", json=body, headers=headers, timeout=60).json()
    assert len(reply["data"][0]["completions"]) == 2


def test_sigterm_ends_it_with_zero_and_no_secret_in_the_log(server: Process) -> None:
    begun = time.monotonic()
    server.child.send_signal(signal.SIGTERM)
    assert server.child.wait(30) == 0
    assert time.monotonic() - begun < 30
    assert server.key not in server.log.read_text()

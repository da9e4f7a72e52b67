"""The command itself, with the real engine and trainer: from a bare start to predictions, and a clean end."""

from __future__ import annotations

import re
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
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "support_tickets"
TINY = {
    "augment": {"variants": 1},
    "loop": {"rounds": 1, "members": 1, "folds": 0},
    "train": {"seed_epochs": 2, "epochs": 1, "seed_repeat": 1},
    "encoder": {"labeller": False},
    "select": {"trust": False},
}


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


def test_from_seeds_to_predictions(server: Process, tmp_path: Path) -> None:
    with server.client() as client:
        job = client.jobs.create(seeds=EXAMPLE / "seeds.jsonl", task=EXAMPLE / "task.json", settings=TINY)
        job.wait()
        job.dataset().download(tmp_path / "dataset")
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

"""The first lines that anybody types."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import httpx
import pytest

from afdc import Client
from tests.sdk.service import DATASET, JOB, NOW, TASK, Service, Time, job, seed_set


def test_six_lines(service: Service, time: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("seeds.jsonl").write_text('{"text": "a", "label": "up"}\n{"text": "b", "label": "down"}\n')
    Path("task.json").write_text(json.dumps(TASK))
    service.on("POST /v1/seeds", seed_set())
    service.on("POST /v1/jobs", httpx.Response(202, json=job("queued")))
    service.on(f"GET /v1/jobs/{JOB}", job(), job("succeeded", dataset=DATASET))
    files = [{"path": "README.md", "bytes": 6, "sha256": hashlib.sha256(b"# card").hexdigest()}]
    data = {"id": DATASET, "job": JOB, "version": 1, "task": TASK, "rows": 2, "rejected": 0, "created_at": NOW}
    service.on(f"GET /v1/datasets/{DATASET}", data | {"files": files})
    service.on(f"GET /v1/datasets/{DATASET}/files/README.md", httpx.Response(200, content=b"# card"))
    service.on("POST /v1/predict", {"adapter": "ad_1", "data": [{"text": "My card was declined", "label": "up"}]})

    client = Client(transport=httpx.MockTransport(service), clock=time.clock(), sleep=time.sleep)
    job_handle = client.jobs.create(seeds="seeds.jsonl", task="task.json")
    job_handle.wait()
    job_handle.dataset().download("dataset/")
    assert client.predict(["My card was declined"], job=job_handle.id)[0].label == "up"
    assert Path("dataset/README.md").read_bytes() == b"# card"

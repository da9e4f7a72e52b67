"""A trainer that publishes real adapter folders with made-up weights. Lives in tests only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from afdc.adapter import AdapterManifest, publish_adapter, verify_adapter
from afdc.files import sha256_bytes, sha256_file, write_bytes
from afdc.training import TrainJob, TrainResult
from tests.fakes.engine import stable_rng


def write_adapter(job: TrainJob, content: str) -> Path:
    """Publish an adapter whose weights are a function of `content`."""
    rank = job.config.rank
    rng = stable_rng(content, job.seed)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    weights = save(
        {
            f"{prefix}.lora_A.weight": rng.normal(size=(rank, 8)).astype(np.float32),
            f"{prefix}.lora_B.weight": rng.normal(size=(8, rank)).astype(np.float32),
        }
    )
    name = f"{job.name}-{sha256_bytes(weights)[:12]}"
    temporary = job.adapters / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed run left
    temporary.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": rank, "bias": "none", "target_modules": ["q_proj"], "lora_alpha": 32}
    write_bytes(temporary / "adapter_config.json", json.dumps(config).encode())
    write_bytes(temporary / "adapter_model.safetensors", weights)
    files = {p.name: sha256_file(p) for p in temporary.iterdir()}
    manifest = AdapterManifest(
        name=name,
        job=job.job,
        round=job.round,
        member=job.member,
        base_model=str(job.model),
        base_revision=job.model_revision,
        rank=rank,
        task=job.task,
        template_hash=job.template_hash,
        temperature=job.temperature,
        files=files,
    )
    write_bytes(temporary / "manifest.json", manifest.model_dump_json().encode())
    publish_adapter(temporary, job.adapters / name)
    return job.adapters / name


class FakeTrainer:
    """Fits nothing: the adapter's weights are a hash of the rows it was given, or of the adapters to be averaged."""

    def __init__(self, on_call: Callable[[str], None] | None = None) -> None:
        self.jobs: list[TrainJob] = []
        self._on_call = on_call or (lambda _: None)

    async def fit(self, job: TrainJob) -> TrainResult:
        self._on_call(f"fit:{job.name}")
        self.jobs.append(job)
        with job.rows.open("rb") as stream:  # line by line: benchmarks/memory_curve.py measures this process
            rows = sum(1 for _ in stream)
        averaged = [verify_adapter(folder).name for folder in job.average]
        adapter = write_adapter(job, " ".join(averaged) or sha256_file(job.rows))
        return TrainResult(status="succeeded", adapter=adapter, steps=1, rows=rows, tokens=1)

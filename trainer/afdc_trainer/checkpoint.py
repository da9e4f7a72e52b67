"""Checkpoints inside a round: one safetensors file, written atomically, its metadata JSON. Never pickle.

Batches and dropout masks are drawn from (seed, step), so weights, AdamW moments and the step are the whole state.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from afdc.files import canonical_json, sha256_bytes, sha256_file, write_bytes
from afdc.training import TrainJob

PATTERN = "checkpoint-*.safetensors"
TENSORS = ("flat", "exp_avg", "exp_avg_sq")


@dataclass
class Trace:
    """Where a run stands. `budget` is the tokens a pack may hold, `recompute` whether activations are recomputed."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    budget: int = 0
    recompute: bool = False
    losses: list[float] = field(default_factory=list)


def fingerprint(job: TrainJob) -> str:
    """Hash of what decides the weights: a checkpoint of another job is never continued."""
    data = job.model_dump(mode="json", exclude={"rows", "work", "adapters", "result", "probes", "name"})
    return sha256_bytes(canonical_json({**data, "rows": sha256_file(job.rows)}))


def save_checkpoint(work: Path, key: str, trace: Trace, tensors: Sequence[Tensor]) -> None:
    """Publish a checkpoint durably, then drop the older ones.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    named = {name: tensor.detach().cpu() for name, tensor in zip(TENSORS, tensors, strict=True)}
    meta = {"fingerprint": key, "digest": _digest(named), "trace": json.dumps(asdict(trace))}
    path = work / f"checkpoint-{trace.step:08d}.safetensors"
    write_bytes(path, save(named, metadata=meta))
    for old in work.glob(PATTERN):
        if old != path:
            old.unlink(missing_ok=True)


def load_checkpoint(work: Path, key: str) -> tuple[Trace, list[Tensor]] | None:
    """The newest whole checkpoint of this job, or None. Torn, foreign and half-written files are removed."""
    found = None
    for path in sorted(work.glob(PATTERN), reverse=True):
        found = found or _read(path, key)
        if found is None:
            path.unlink()
    for path in work.glob(".checkpoint-*.tmp"):
        path.unlink()
    return found


def drop_checkpoints(work: Path) -> None:
    """Remove every checkpoint: the result exists."""
    for path in work.glob(PATTERN):
        path.unlink(missing_ok=True)


def _read(path: Path, key: str) -> tuple[Trace, list[Tensor]] | None:
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            named = {name: file.get_tensor(name) for name in TENSORS}
    except SafetensorError:
        return None
    if meta.get("fingerprint") != key or meta.get("digest") != _digest(named):
        return None
    return Trace(**json.loads(meta["trace"])), [named[name] for name in TENSORS]


def _digest(named: dict[str, Tensor]) -> str:
    joined = "".join(sha256_bytes(memoryview(named[name].numpy()).cast("B")) for name in TENSORS)  # type: ignore[arg-type]  # hashlib takes any buffer
    return sha256_bytes(joined.encode())


def moments(optimizer: torch.optim.AdamW, flat: Tensor) -> list[Tensor]:
    """AdamW's running means of the gradient and its square; zeros before the first step."""
    state = optimizer.state.get(flat, {})
    return [state.get(name, torch.zeros_like(flat)) for name in TENSORS[1:]]


def restore(optimizer: torch.optim.AdamW, flat: Tensor, trace: Trace, tensors: Sequence[Tensor]) -> None:
    """Put weights and moments back in place."""
    with torch.no_grad():
        flat.copy_(tensors[0])
    optimizer.state[flat] = {
        "step": torch.tensor(float(trace.step)),
        "exp_avg": tensors[1].to(flat.device),
        "exp_avg_sq": tensors[2].to(flat.device),
    }

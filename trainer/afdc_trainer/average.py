"""The mean of the updates of several adapters, as one adapter (model soups: Wortsman et al. 2022, arXiv 2203.05482).

What is averaged is each layer's update scale * B A. The mean of the A and that of the B would multiply to something
else, since every adapter has a basis of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import pad

from afdc.adapter import CONFIG_FILE, MATRICES, WEIGHTS_FILE, AdapterManifest, read_tensor_shapes, verify_adapter
from afdc.errors import TrainerError
from afdc.training import TrainJob
from afdc_trainer.lora import update_scale

SHOWN = 3


@dataclass(frozen=True)
class Update:
    """The update of one layer, scale * b @ a. Shapes: a [r, in], b [out, r]; each update has its own r."""

    a: Tensor
    b: Tensor
    scale: float


def mean_update(updates: Sequence[Update], rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Float32 A [rank, in] and B [out, rank] whose scale * B A is the mean of the updates.

    Where the mean has a higher rank, it is the nearest one (Eckart and Young 1936); where it has a lower one, rows of A
    and columns of B are zero. The singular values come from a core of at most n r x n r, computed in float64: the mean
    is [B_1 .. B_n] [A_1; ..; A_n], and the factors of both sides' QR hold all of it.
    """
    left = torch.cat([one.b.double() * (one.scale / len(updates)) for one in updates], dim=1)
    right = torch.cat([one.a.double() for one in updates])
    out_basis, out_core = torch.linalg.qr(left)
    in_basis, in_core = torch.linalg.qr(right.t())
    u, singular, vt = torch.linalg.svd(out_core @ in_core.t(), full_matrices=False)
    root = (singular[:rank] / scale).sqrt()
    a = root[:, None] * (vt[:rank] @ in_basis.t())
    b = (out_basis @ u[:, :rank]) * root
    missing = rank - len(root)
    return pad(a, (0, 0, 0, missing)).float(), pad(b, (0, missing)).float()


def mean_state(job: TrainJob, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of the adapters `job.average`, of rank and scale as `job.config` has them, by PEFT's tensor names.

    Args:
        wanted: the matrices of the model that it is for, by the same names. Only their shapes count.

    Raises:
        AdapterError: an adapter is damaged.
        TrainerError: an adapter is of another base model, or on other layers.
    """
    config, layers = job.config, _layers({name: tuple(tensor.shape) for name, tensor in wanted.items()})
    scale = update_scale(config.alpha, config.rank, rslora=config.rslora)
    for folder in job.average:
        _check(job, folder, verify_adapter(folder), layers)
    scales = [_scale_of(folder) for folder in job.average]
    state: dict[str, Tensor] = {}
    with ExitStack() as stack:  # a layer at a time: memory does not grow with the number of adapters
        files = [stack.enter_context(_open(folder)) for folder in job.average]
        for layer in layers:
            a, b = (layer + matrix for matrix in MATRICES)
            updates = [Update(one.get_tensor(a), one.get_tensor(b), s) for one, s in zip(files, scales, strict=True)]
            state[a], state[b] = mean_update(updates, config.rank, scale)
    return state


def _check(job: TrainJob, folder: Path, manifest: AdapterManifest, layers: Mapping[str, tuple[int, int]]) -> None:
    if manifest.base_revision != job.model_revision:
        raise TrainerError(
            f"{folder.name} was trained on {manifest.base_model} at {manifest.base_revision} and cannot be averaged "
            f"with adapters of {job.model} at {job.model_revision}",
            remedy="Average adapters of one base model",
        )
    found = _layers(read_tensor_shapes(folder / WEIGHTS_FILE))
    if found != layers:
        differing = sorted({name for name, _ in found.items() ^ layers.items()})
        raise TrainerError(
            f"{folder.name} and the model differ in {len(differing)} of the layers that carry LoRA, for example "
            f"{', '.join(differing[:SHOWN])}",
            remedy="Average adapters with the same target modules",
        )


def _layers(shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int]]:
    """Beginning of the two tensors' names -> in and out of the layer; the rank may be any."""
    a, b = MATRICES
    starts = [name.removesuffix(a) for name in shapes if name.endswith(a)]
    return {start: (shapes[start + a][1], shapes[start + b][0]) for start in starts}


def _scale_of(folder: Path) -> float:
    """Of an adapter that was verified."""
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    return update_scale(config["lora_alpha"], config["r"], rslora=bool(config.get("use_rslora")))


def _open(folder: Path) -> Any:
    return safe_open(folder / WEIGHTS_FILE, framework="pt")

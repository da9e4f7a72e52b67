"""What the NVIDIA driver says about this machine's GPUs. Neither torch nor a CUDA context is needed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from afdc.precision import Capability, describe_precision

QUERY = ("nvidia-smi", "--query-gpu=index,uuid,compute_cap", "--format=csv,noheader")
MEMORY_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,memory.free,memory.total", "--format=csv,noheader,nounits")
QUERY_SECONDS = 20.0
MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Of one GPU, bytes."""

    free: int
    total: int


def compute_capability() -> Capability | None:
    """Lowest compute capability of the GPUs that this process may use; None where the driver does not tell."""
    return lowest_capability(_ask(QUERY), os.environ)


def gpu_memory() -> list[GpuMemory]:
    """Of the GPUs that this process may use; empty where the driver does not tell."""
    return visible_memory(_ask(MEMORY_QUERY), os.environ)


def _ask(query: Sequence[str]) -> str:
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=QUERY_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def memory_fault(gpus: Sequence[GpuMemory], weights: int, share: float, count: int) -> str:
    """Why an engine could not start on the `count` freest of the GPUs; "" where it can, or where nothing is known.

    vLLM wants its share of a GPU free before it starts, and the weights must fit into it beside the KV cache.

    Args:
        weights: bytes of the whole model; 0: not known yet.
        share: of each GPU's memory, for the engine.
    """
    chosen = sorted(gpus, key=lambda gpu: gpu.free, reverse=True)[:count]
    for gpu in chosen:
        wanted, total = share * gpu.total / GIB, gpu.total / GIB
        if gpu.free < share * gpu.total:
            return f"{gpu.free / GIB:.1f} of {total:.1f} GiB of the GPU are free, and the engine takes {wanted:.1f} GiB"
        if weights / count >= share * gpu.total:
            told = f"{weights / count / GIB:.1f} GiB of weights a GPU"
            return f"{told} do not fit into the engine's {wanted:.1f} of {total:.1f} GiB"
    return ""


def precision() -> str:
    """What `dtype = "auto"` means on this machine's GPUs, for people."""
    return describe_precision(compute_capability())


def lowest_capability(listing: str, environ: Mapping[str, str]) -> Capability | None:
    """The lowest of the visible GPUs of a listing with lines `index, uuid, major.minor`.

    CUDA numbers GPUs as nvidia-smi does only under CUDA_DEVICE_ORDER=PCI_BUS_ID, so numbers in CUDA_VISIBLE_DEVICES
    count only then; UUIDs always do. Where they do not count, the lowest of all GPUs is a safe answer.
    """
    found = [(row[0], row[1], capability) for row in _rows(listing, 3) if (capability := _parse(row[2]))]
    chosen = _chosen(environ)
    visible = [capability for index, uuid, capability in found if _is_chosen(index, uuid, chosen, environ)]
    return min(visible or [capability for _, _, capability in found], default=None)


def visible_memory(listing: str, environ: Mapping[str, str]) -> list[GpuMemory]:
    """Of the visible GPUs of a listing with lines `index, uuid, free, total` (MiB).

    Where CUDA_VISIBLE_DEVICES does not tell which they are (see `lowest_capability`; parts of a GPU, MIG), it is empty.
    """
    chosen = _chosen(environ)
    return [
        GpuMemory(int(free) * MIB, int(total) * MIB)
        for index, uuid, free, total in _rows(listing, 4)
        if free.isdigit() and total.isdigit() and (not chosen or _is_chosen(index, uuid, chosen, environ))
    ]


def _rows(listing: str, cells: int) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines()]
    return [row for row in rows if len(row) == cells]


def _chosen(environ: Mapping[str, str]) -> list[str]:
    return [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]


def _is_chosen(index: str, uuid: str, chosen: Sequence[str], environ: Mapping[str, str]) -> bool:
    numbered = environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    return any(uuid.startswith(name) or (numbered and name == index) for name in chosen)


def _parse(text: str) -> Capability | None:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None

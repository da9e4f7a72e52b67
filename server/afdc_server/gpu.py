"""What the NVIDIA driver says about this machine's GPUs. Neither torch nor a CUDA context is needed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from afdc.precision import Capability, describe_precision

QUERY = ("nvidia-smi", "--query-gpu=index,uuid,compute_cap", "--format=csv,noheader")
QUERY_SECONDS = 20.0


def compute_capability() -> Capability | None:
    """Lowest compute capability of the GPUs that this process may use; None where the driver does not tell."""
    try:
        answer = subprocess.run(QUERY, capture_output=True, text=True, timeout=QUERY_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return lowest_capability(answer.stdout, os.environ)


def precision() -> str:
    """What `dtype = "auto"` means on this machine's GPUs, for people."""
    return describe_precision(compute_capability())


def lowest_capability(listing: str, environ: Mapping[str, str]) -> Capability | None:
    """The lowest of the visible GPUs of a listing with lines `index, uuid, major.minor`.

    CUDA numbers GPUs as nvidia-smi does only under CUDA_DEVICE_ORDER=PCI_BUS_ID, so numbers in CUDA_VISIBLE_DEVICES
    count only then; UUIDs always do. Where they do not count, the lowest of all GPUs is a safe answer.
    """
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines()]
    found = [(row[0], row[1], capability) for row in rows if len(row) == 3 and (capability := _parse(row[2]))]
    chosen = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    numbered = environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    visible = [
        capability
        for index, uuid, capability in found
        if any(uuid.startswith(name) or (numbered and name == index) for name in chosen)
    ]
    return min(visible or [capability for _, _, capability in found], default=None)


def _parse(text: str) -> Capability | None:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None

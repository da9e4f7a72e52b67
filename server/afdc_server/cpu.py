"""What the CPU computes fast. Read from the kernel, so that torch need not be imported."""

from __future__ import annotations

import re
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 twice, and ARM


def has_bfloat16(info: Path = CPU_INFO) -> bool:
    """Whether the CPU multiplies bfloat16; one that does not tell is taken for a new one.

    Without such instructions every product is converted to float32 and back (docs/engine.md has what that costs).
    """
    try:
        listing = info.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", listing, re.MULTILINE)
    return not lines or all(BFLOAT16_FLAGS & set(line.split()) for line in lines)

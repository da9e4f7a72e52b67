"""Did memory run out? Read off an error, or off the output of a process that ended."""

from __future__ import annotations

import re

# The last line of a traceback, behind whatever prefix a logger wrote: `torch.OutOfMemoryError: Tried to allocate ...`.
# A colon and text must follow, or nothing at all: lines of source code that name the type have neither.
_TYPE = re.compile(
    r"(?:^|\s)(?:[A-Za-z_]\w*\.)*\w*(?:OutOfMemoryError|MemoryError):[ \t]+\S|^\w*MemoryError[ \t]*$", re.M
)
_PHRASES = (
    "cuda out of memory",  # PyTorch's caching allocator
    "cuda error: out of memory",  # the CUDA runtime, as torch.AcceleratorError
    "cublas_status_alloc_failed",  # cuBLAS workspaces
    "can't allocate memory",  # PyTorch's CPU allocator
    "cannot allocate memory",  # ENOMEM
    "less than desired gpu memory utilization",  # vLLM, before it loads the model
    "no available memory for the cache blocks",  # vLLM, after it has loaded it
)


def names_out_of_memory(text: str) -> bool:
    """Whether `text` (an error, a traceback, a log) says that memory ran out: by type, else by message."""
    lowered = text.lower()
    return _TYPE.search(text) is not None or any(phrase in lowered for phrase in _PHRASES)

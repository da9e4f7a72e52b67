"""What an engine that ended left in its log."""

from __future__ import annotations

from pathlib import Path

from afdc.memory import names_out_of_memory

MAX_TAIL_BYTES = 1 << 18


def log_size(log: Path) -> int:
    """Bytes in the log now; a later engine writes behind them."""
    return log.stat().st_size if log.exists() else 0


def remedy(log: Path, since: int) -> str:
    """What to do about an engine whose own messages stand in the log from byte `since` on."""
    if not names_out_of_memory(_tail(log, since)):
        return f"{log} says why"
    return (
        f"Memory ran out ({log} says where): change engine.gpu_memory_utilization (on a CPU engine.kv_cache_gib), "
        "lower engine.max_num_seqs or engine.max_model_len, or take a smaller model"
    )


def _tail(log: Path, since: int) -> str:
    try:
        with log.open("rb") as stream:
            stream.seek(max(since, log.stat().st_size - MAX_TAIL_BYTES))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""

"""Ids: a prefix and a UUIDv7 in hex, so that they sort by the time they were made (RFC 9562, section 5.7)."""

from __future__ import annotations

import os
import re
import threading
import time

SEED, JOB, DATASET, ADAPTER, KEY, REQUEST = "seed_", "job_", "ds_", "ad_", "key_", "req_"
RANDOM_BITS = 74
VALID = re.compile(r"[a-z]{2,5}_[0-9a-f]{32}")


class _Clock:
    """Milliseconds that never repeat within a process, and random bits below them."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def next(self) -> int:
        with self._lock:
            self._last = max(self._last + 1, time.time_ns() // 1_000_000)
            return self._last


_clock = _Clock()


def new_id(prefix: str) -> str:
    """A new id. Those of one process rise strictly."""
    bits = int.from_bytes(os.urandom(10), "big") >> (80 - RANDOM_BITS)
    high, low = bits >> 62, bits & ((1 << 62) - 1)
    value = (_clock.next() << 80) | (0x7 << 76) | (high << 64) | (0b10 << 62) | low
    return f"{prefix}{value:032x}"


def is_id(text: str, prefix: str) -> bool:
    """Whether `text` can be an id with this prefix: what cannot is not looked up."""
    return text.startswith(prefix) and VALID.fullmatch(text) is not None

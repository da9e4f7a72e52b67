"""Hashes of large files, remembered: gigabytes of weights are read once and not at every start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from afdc.errors import StorageError
from afdc.files import cache_root, sha256_bytes, sha256_file, write_json


def content_hash(path: Path) -> str:
    """Hex SHA-256 of a file's content, from the cache while size and modification time are the same."""
    stat = path.stat()
    seen = {"path": str(path.resolve()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    note = cache_root() / "hashes" / f"{sha256_bytes(str(path.resolve()).encode())[:32]}.json"
    known = _read(note)
    if known is not None and {key: known.get(key) for key in seen} == seen:
        return str(known["sha256"])
    digest = sha256_file(path)
    try:
        write_json(note, {**seen, "sha256": digest})
    except StorageError:
        return digest  # a cache that cannot be written costs time and nothing else
    return digest


def _read(note: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "sha256" in found else None

"""What is kept between runs: results as files by the hash of their inputs, engine answers in one SQLite file."""

from __future__ import annotations

import ast
import fcntl
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from afdc.files import canonical_json, sha256_bytes

BATCH = 500
BUSY_S = 120.0


def digest(value: Any) -> str:
    """SHA-256 over canonical JSON, in hex."""
    return sha256_bytes(canonical_json(value))


class KeyValue:
    """Bytes by key, shared by the processes of a sweep."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        with locked(path.with_suffix(".lock")):  # two that go over to WAL at once are refused without waiting
            self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")

    def get(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Those of the keys that have a value."""
        found: dict[str, bytes] = {}
        for start in range(0, len(keys), BATCH):
            part = keys[start : start + BATCH]
            marks = ",".join("?" * len(part))
            found.update(self._db.execute(f"SELECT key, value FROM answers WHERE key IN ({marks})", part))
        return found

    def put(self, values: Mapping[str, bytes]) -> None:
        """Store all of the values together; what a key holds already stays."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", list(values.items()))
        self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file lock, so that two processes do not make the same thing; the system frees it when one dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def code_digest(places: Sequence[Path], without: Sequence[str] = ()) -> str:
    """Hash of the Python code in files and under folders, blind to comments, docstrings and layout.

    Args:
        without: names of folders and modules that do not count.
    """
    found = [path for place in places for path in ([place] if place.is_file() else place.rglob("*.py"))]
    files = sorted(path for path in found if not {path.parent.name, path.stem} & set(without))
    return digest([[path.name, _bare_code(path)] for path in files])


def _bare_code(path: Path) -> str:
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = [one for one in node.body if not _is_text(one)]
            node.body[:] = body or [ast.Pass()]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)

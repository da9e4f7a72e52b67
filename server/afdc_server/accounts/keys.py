"""API keys: 256 random bits, shown once, stored as an HMAC under the server's secret."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from afdc.errors import StorageError

PREFIX = "afdc_"
KEY_BYTES = 32
HINT_CHARS = 10
MAX_KEY_CHARS = 128


def new_key() -> str:
    """A key that nobody can guess."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def digest(secret: bytes, key: str) -> str:
    """What is stored of a key: hex HMAC-SHA256. A stolen database without the secret opens nothing."""
    return hmac.new(secret, key.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def hint(key: str) -> str:
    """The beginning of a key, by which a person tells it from others."""
    return key[:HINT_CHARS]


def load_secret(path: Path) -> bytes:
    """The server's secret, made on the first start. Readable by its owner alone.

    Raises:
        StorageError: it cannot be read or made, or is too short to be one.
    """
    try:
        if not path.exists():
            _make_secret(path)
        secret = path.read_bytes()
    except OSError as exc:
        raise StorageError(f"cannot use the secret {path}: {exc.strerror}", remedy="Check the folder's rights") from exc
    if len(secret) < KEY_BYTES:
        raise StorageError(f"{path} is damaged: it holds {len(secret)} bytes", remedy="Restore it from a copy")
    return secret


def _make_secret(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(secrets.token_bytes(KEY_BYTES))
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(temporary, path)

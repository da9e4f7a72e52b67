"""The output folder of a run: whose job it holds, and who may write to it now."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from afdc.config import RunConfig
from afdc.errors import ConflictError, StorageError
from afdc.files import canonical_json, sha256_bytes, write_json
from afdc.layout import RunLayout
from afdc.presets import identifying_settings
from afdc_pipeline.seams import EncoderInfo
from afdc_server.local.request import CheckedRequest
from afdc_server.models import ModelRef

IDENTITY_FILE = "job.json"
LOCK_FILE = "lock"
SHOWN_DIFFERENCES = 4


def job_identity(
    checked: CheckedRequest, config: RunConfig, model: ModelRef, encoder: EncoderInfo | None = None
) -> dict[str, Any]:
    """All that the result depends on; two runs with equal identities are the same job."""
    settings = identifying_settings(config)
    settings.pop("model")
    beside = {} if encoder is None else {"encoder": {"name": encoder.name, "revision": encoder.revision}}
    return {
        **beside,
        "config": settings,
        "task": checked.task.model_dump(mode="json"),
        "files": checked.digests,
        "model": {"name": model.name, "revision": model.revision},
    }


def job_id(identity: dict[str, Any]) -> str:
    """`job-` and 8 hex digits of the identity's hash."""
    return f"job-{sha256_bytes(canonical_json(identity))[:8]}"


def claim_folder(layout: RunLayout, identity: dict[str, Any]) -> None:
    """Make the folder this job's own, or see that it already is. Call it while `hold_folder` holds the folder.

    Raises:
        ConflictError: it holds another job.
        StorageError: it cannot be written.
    """
    if not check_claim(layout, identity):
        write_json(layout.state / IDENTITY_FILE, identity)


def check_claim(layout: RunLayout, identity: dict[str, Any]) -> bool:
    """Whether the folder is this job's own already.

    Raises:
        ConflictError: it holds another job, or says of its job what cannot be read.
        StorageError: it cannot be read.
    """
    path = layout.state / IDENTITY_FILE
    with _readable(layout):
        data = path.read_bytes() if path.exists() else None
    if data is None:
        return False
    try:
        stored = json.loads(data)
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict):
        raise ConflictError(f"{path} is damaged: whose job this is cannot be told", remedy="Give --out another folder")
    _check_identity(layout.root, stored, identity)
    return True


def check_writable(layout: RunLayout) -> None:
    """See that the folder can be made and written; leaves nothing behind.

    Raises:
        StorageError: it cannot.
    """
    parent = next(path for path in (layout.root, *layout.root.parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(dir=parent):
            pass  # making a folder is the check
    except OSError as exc:
        raise _unwritable(layout, exc) from exc


def _unwritable(layout: RunLayout, exc: OSError) -> StorageError:
    return StorageError(f"cannot write to {layout.root}: {exc.strerror}", remedy="Give another --out")


def check_folder(layout: RunLayout) -> None:
    """See that the folder is a run's, empty, or not there yet.

    Raises:
        ConflictError: it holds files that are not a run's.
        StorageError: it cannot be read.
    """
    with _readable(layout):
        is_foreign = not (layout.state / IDENTITY_FILE).exists() and _holds_other_files(layout)
    if is_foreign:
        raise ConflictError(
            f"{layout.root} exists and is not a run of afdc", remedy="Give --out a new or an empty folder"
        )


def _holds_other_files(layout: RunLayout) -> bool:
    entries = layout.root.iterdir() if layout.root.is_dir() else ()
    return layout.root.is_file() or any(entry != layout.state for entry in entries)


@contextmanager
def _readable(layout: RunLayout) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StorageError(f"cannot read {layout.root}: {exc.strerror}", remedy="Give another --out") from exc


def _check_identity(root: Path, stored: dict[str, Any], identity: dict[str, Any]) -> None:
    differences = list(_differences(stored, json.loads(canonical_json(identity))))
    if differences:
        shown = "; ".join(differences[:SHOWN_DIFFERENCES])
        more = len(differences) - SHOWN_DIFFERENCES
        raise ConflictError(
            f"{root} holds another job: {shown}{f' and {more} more' if more > 0 else ''}",
            remedy="Repeat the command of the first start to resume it, or give --out another folder",
        )


def _differences(stored: Any, wanted: Any, path: str = "") -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in sorted(stored.keys() | wanted.keys()):
            yield from _differences(stored.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    elif stored != wanted:
        yield f"{path} was {_short(stored)}, now {_short(wanted)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


@contextmanager
def hold_folder(layout: RunLayout) -> Iterator[None]:
    """Keep every other process out while this one works; the system frees the lock when the process ends.

    Raises:
        ConflictError: another process works on this folder.
    """
    try:
        layout.state.mkdir(parents=True, exist_ok=True)
        handle = os.open(layout.state / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        raise _unwritable(layout, exc) from exc
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(handle)
        raise ConflictError(
            f"another process is working on {layout.root}", remedy="Wait for it or end it, then run the command again"
        ) from exc
    try:
        yield
    finally:
        os.close(handle)

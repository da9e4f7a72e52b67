"""What can go wrong before the first request: each fault by name, with the setting to change."""

from __future__ import annotations

import os
import resource
import shutil
import socket

from afdc.errors import EngineError, StorageError, UsageError
from afdc.precision import engine_dtype
from afdc_server.accounts.store import has_key
from afdc_server.db.database import Database
from afdc_server.gpu import compute_capability, gpu_memory, memory_fault
from afdc_server.models import detect_device, local_model
from afdc_server.service.settings import ServerSettings

MIN_FREE_BYTES = 1 << 30
WANTED_FILES = 65_536
BACKLOG = 4096
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MEMORY_REMEDY = "End what uses it, lower engine.gpu_memory_utilization, or take a smaller model"


def bind(settings: ServerSettings) -> socket.socket:
    """Take the port before anything expensive is started.

    Raises:
        UsageError: it is in use, or may not be used.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as exc:
        listener.close()
        raise UsageError(
            f"cannot listen on {settings.host}:{settings.port}: {exc.strerror}", remedy="Give another --port or --host"
        ) from exc
    listener.listen(BACKLOG)
    return listener


def check_disk(settings: ServerSettings) -> None:
    """See that the data folder can be written and has room.

    Raises:
        StorageError: it cannot, or has not.
    """
    try:
        settings.data.mkdir(parents=True, exist_ok=True)
        os.chmod(settings.data, 0o700)  # seeds, models' outputs and the secret are nobody else's
        free = shutil.disk_usage(settings.data).free
    except OSError as exc:
        raise StorageError(f"cannot use {settings.data}: {exc.strerror}", remedy="Give --data another folder") from exc
    if free < MIN_FREE_BYTES:
        raise StorageError(
            f"{settings.data} has {free / 2**30:.1f} GiB free, and a job needs more",
            remedy="Free space, or move --data",
        )


def check_model(settings: ServerSettings) -> None:
    """See that there is a device and a model for it, as far as nothing has to be fetched, and that it has room.

    Raises:
        ModelError: no such folder, no hub id, or a folder that cannot be used. UsageError: no such device.
        EngineError: the GPU's memory is taken, or too small.
    """
    config = settings.engine
    device = detect_device(config.device)
    model = local_model(settings.model, device)
    if device == "cpu" or config.url:
        return
    dtype = engine_dtype(compute_capability()) if config.dtype == "auto" else config.dtype
    weights = model.parameters * DTYPE_BYTES[dtype] if model else 0
    fault = memory_fault(gpu_memory(), weights, config.gpu_memory_utilization, config.tensor_parallel_size)
    if fault:
        raise EngineError(fault, remedy=MEMORY_REMEDY)


def check_exposure(settings: ServerSettings, database: Database) -> None:
    """Refuse to be reachable from other machines while nobody has a key.

    Raises:
        UsageError: says how to make one.
    """
    if settings.is_loopback:
        return
    with database.read() as connection:
        is_guarded = has_key(connection, usable=True)
    if not is_guarded:
        raise UsageError(
            f"{settings.host} can be reached from other machines, and there is no API key",
            remedy="Make one first: afdc-server create-key",
        )


def raise_file_limit() -> None:
    """Each open event stream is a file: take as many as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

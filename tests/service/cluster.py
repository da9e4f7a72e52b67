"""A PostgreSQL of the tests' own, where its programs are installed: on a free loopback port, in a temporary folder."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import psycopg
import pytest

NEEDED = ("initdb", "postgres")
NOBODY = "nobody"  # PostgreSQL refuses to run as root
START_S = 60.0
_numbers = itertools.count()


class Cluster:
    """One server; `make` gives each test an empty database in it."""

    def __init__(self, root: Path) -> None:
        self._data = root / "data"
        self._log = root / "log"
        self._as = {"user": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        if self._as:
            shutil.chown(root, NOBODY)
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        options = ("--auth=trust", "--username=afdc", "--encoding=UTF8", "--no-locale", "--no-sync")
        command = [str(shutil.which("initdb")), "-D", str(self._data), *options]
        subprocess.run(command, check=True, capture_output=True, cwd=root, **self._as)  # type: ignore[call-overload]  # of subprocess.run with a dict

    def start(self) -> None:
        """Returns once it answers."""
        settings = (f"port={self.port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off")
        command = ["postgres", "-D", str(self._data)]
        command += [part for setting in settings for part in ("-c", setting)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._data, **self._as)  # type: ignore[call-overload]  # as above
        end = time.monotonic() + START_S
        while not self._answers():
            assert time.monotonic() < end, self._log.read_text(errors="replace")
            time.sleep(0.1)

    def stop(self) -> None:
        """At once, cutting every connection."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None

    def make(self) -> str:
        """URL of a new database."""
        name = f"t{os.getpid()}_{next(_numbers)}"
        with psycopg.connect(self._dsn("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]  # a name of our own
        return f"postgresql://afdc@127.0.0.1:{self.port}/{name}"

    def _answers(self) -> bool:
        try:
            psycopg.connect(self._dsn("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True

    def _dsn(self, name: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=afdc dbname={name} connect_timeout=5"


@cache
def cluster() -> Cluster:
    """The session's cluster. Skips the test where PostgreSQL is not installed."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"PostgreSQL is not installed: no {', '.join(missing)}")
    root = Path(tempfile.mkdtemp(prefix="afdc-pg-"))
    made = Cluster(root)
    made.start()
    atexit.register(shutil.rmtree, root, True)
    atexit.register(made.stop)
    return made


def database_url(kind: str, folder: Path) -> str:
    """An empty database of kind "sqlite" or "postgresql"."""
    return f"sqlite:///{folder / 'shared.db'}" if kind == "sqlite" else cluster().make()

"""kill -9 of a real server, of its engine core and of its trainers, at random moments, over as many jobs as it takes.

    python -m benchmarks.kill_real DIR --kills 200

The first job runs undisturbed; the others have the same seeds and settings and must end with the same rows. DIR keeps
what was done so far (`state.json`), and the same command goes on from there. Needs the packages of the server and of
the trainer, and the packaged model; a job takes about two minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from afdc.files import write_json
from afdc.wire.jobs import TERMINAL

READY_S, END_S, POLL_S = 600.0, 7200.0, 0.5
STATE_FILE = "state.json"
COMMAND = (sys.executable, "-m", "afdc_server.service")
TARGETS = {"server": 2, "engine": 1, "trainer": 2}
"""What is killed, and how often in relation to the others; a trainer only while there is one."""
ENGINE_NAME, TRAINER_NAME = "EngineCore", "afdc_trainer"
SETTINGS: dict[str, Any] = {
    "augment": {"variants": 2, "rounds": 1},
    "loop": {"rounds": 1, "members": 1, "folds": 0},
    "encoder": {"labeller": False},
}
LABELS = {
    "card": ("Where is my new card?", "My card has not come", "I lost my card", "The card does not work abroad"),
    "refund": ("I want my money back", "When do I get the refund?", "The refund is too small", "Please return the fee"),
    "pin": ("I forgot my PIN", "How do I change the PIN?", "The PIN is blocked", "Can I choose my own PIN?"),
}
SHOWN = ("text", "label", "intended", "reason")


@dataclass
class State:
    """Kept in DIR. `kills`: by target; `jobs`: ids in order; `ended`: what came of each."""

    kills: Counter[str] = field(default_factory=Counter)
    jobs: list[str] = field(default_factory=list)
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    retries: int = 0
    rows: list[list[str]] = field(default_factory=list)

    @staticmethod
    def load(root: Path) -> State:
        path = root / STATE_FILE
        found = json.loads(path.read_bytes()) if path.exists() else {}
        return State(**{**found, "kills": Counter(found.get("kills", {}))})

    def save(self, root: Path) -> None:
        write_json(root / STATE_FILE, vars(self))


class Server:
    """The real command in a process of its own."""

    def __init__(self, data: Path) -> None:
        self.data = data
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


def submit(server: Server, number: int) -> str:
    """Start the job; a repeat after a lost reply is the same job."""
    examples = [{"text": text, "label": label} for label, texts in LABELS.items() for text in texts]
    task = {"instruction": "What is the message about?", "labels": [{"name": name} for name in LABELS]}
    body = {"task": task, "examples": examples}
    seeds = server.ask("POST", "/seeds", json=body, headers={"Idempotency-Key": "seeds"})["id"]
    job = {"seeds": seeds, "settings": SETTINGS, "name": f"kill {number}"}
    return str(server.ask("POST", "/jobs", json=job, headers={"Idempotency-Key": f"job-{number}"})["id"])


def rows_of(server: Server, dataset: str) -> list[dict[str, Any]]:
    """Rows of both splits, page by page."""
    found: list[dict[str, Any]] = []
    for split in ("default", "rejected"):
        after = ""
        while True:
            query = {"split": split, "limit": 100, **({"after": after} if after else {})}
            page = server.ask("GET", f"/datasets/{dataset}/rows", params=query)
            found += page["data"]
            if not page["has_more"]:
                break
            after = page["last_id"]
    return found


def judge(server: Server, state: State, job: dict[str, Any]) -> dict[str, Any]:
    """Compare a finished job with the undisturbed one. The first one becomes it."""
    if job["status"] != "succeeded":
        return {"status": job["status"], "error": job["error"]}
    rows = rows_of(server, job["dataset"])
    ids = Counter(row["id"] for row in rows)
    texts = sorted([str(row.get(name)) for name in SHOWN] for row in rows)
    if not state.rows:
        state.rows = texts
    wanted, got = Counter(map(tuple, state.rows)), Counter(map(tuple, texts))
    return {
        "status": "succeeded",
        "rows": len(rows),
        "duplicated": sum(count - 1 for count in ids.values()),
        "lost": sum((wanted - got).values()),
        "other": sum((got - wanted).values()),
        "gaps": _gaps(server, job["id"]),
    }


def _gaps(server: Server, job: str) -> int:
    """Events whose id is not the next one."""
    ids: list[int] = []
    while True:
        page = server.ask("GET", f"/jobs/{job}/events", params={"after": ids[-1] if ids else 0})
        ids += [one["id"] for one in page["data"]]
        if not page["has_more"]:
            return sum(got != wanted for got, wanted in zip(ids, range(1, len(ids) + 1), strict=True))


def choose(server: Server, source: random.Random) -> tuple[str, int | None]:
    """What to kill now; no process id for the server itself."""
    places = {"engine": server.find(ENGINE_NAME), "trainer": server.find(TRAINER_NAME)}
    weights = {name: weight for name, weight in TARGETS.items() if name == "server" or places[name]}
    target = source.choices(list(weights), list(weights.values()))[0]
    return target, source.choice(places[target]) if target != "server" else None


def disturb(server: Server, state: State, source: random.Random) -> None:
    """One kill."""
    target, pid = choose(server, source)
    if pid is None:
        left = server.kill()
        state.kills["orphans"] += len(left)
        server.start()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    state.kills[target] += 1
    print(f"kill {_count(state)}: {target}", flush=True)


def _count(state: State) -> int:
    return sum(state.kills[name] for name in TARGETS)


def watch(server: Server, state: State, job: str, given: argparse.Namespace, source: random.Random) -> dict[str, Any]:
    """Follow a job to its end, killing on the way; a failed one that may be tried again is."""
    end = time.monotonic() + END_S
    pause = source.uniform(given.shortest, given.longest)
    last = time.monotonic()
    while time.monotonic() < end:
        found: dict[str, Any] = server.ask("GET", f"/jobs/{job}")
        if found["status"] == "failed" and found["error"]["retryable"]:
            state.retries += 1
            server.ask("POST", f"/jobs/{job}/retry")
        elif found["status"] in TERMINAL:
            return found
        if state.rows and _count(state) < given.kills and time.monotonic() - last > pause:
            disturb(server, state, source)
            state.save(given.root)
            last, pause = time.monotonic(), source.uniform(given.shortest, given.longest)
        time.sleep(POLL_S)
    return {"id": job, "status": "hung", "error": None}


def summary(state: State) -> str:
    """The numbers of everything so far."""
    ended = list(state.ended.values())
    total = {name: sum(one.get(name, 0) for one in ended) for name in ("duplicated", "lost", "other", "gaps")}
    good = sum(one["status"] == "succeeded" for one in ended)
    same = sum(one["status"] == "succeeded" and not one["lost"] and not one["other"] for one in ended)
    kills = ", ".join(f"{name} {count}" for name, count in sorted(state.kills.items()))
    return (
        f"{_count(state)} kills ({kills}); {len(ended)} jobs ended, {good} succeeded, {state.retries} retries; "
        f"{total['lost']} rows lost, {total['duplicated']} duplicated, {total['gaps']} gaps in events; "
        f"{same} of {good} with the rows of the undisturbed run"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="DIR")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--shortest", type=float, default=5.0, help="seconds between two kills, at least")
    parser.add_argument("--longest", type=float, default=90.0, help="seconds between two kills, at most")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.root.mkdir(parents=True, exist_ok=True)
    state = State.load(given.root)
    source = random.Random(f"{given.seed} {_count(state)}")  # noqa: S311 - chooses what to kill
    server = Server(given.root / "data")
    server.start()
    try:
        while not state.rows or _count(state) < given.kills or len(state.ended) < len(state.jobs):
            if len(state.ended) == len(state.jobs):
                state.jobs.append(submit(server, len(state.jobs)))
            job = state.jobs[len(state.ended)]
            state.ended[job] = judge(server, state, watch(server, state, job, given, source))
            state.save(given.root)
            print(summary(state), flush=True)
        print(f"the server ended with {server.stop()}")
    finally:
        server.kill()


if __name__ == "__main__":
    main()

"""kill -9 of a real server, of its engine core and of its trainers, at random moments, over as many jobs as it takes.

    python -m benchmarks.kill_real DIR --kills 200

The first job runs undisturbed; the others have the same seeds and settings and must end with the same rows: each draw
once, and with the same text and label. In bfloat16 a draw that an engine's death has put into another batch may come
out as another text (docs/architecture.md); such rows are counted apart, and `--dtype float32` makes them rare. DIR
keeps what was done so far (`state.json`), and the same command goes on from there. Needs the packages of the server and
of the trainer, and the packaged model; a job takes about two minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afdc.files import write_json
from afdc.wire.jobs import TERMINAL
from benchmarks.server_process import POLL_S, ServerProcess

END_S = 7200.0
STATE_FILE = "state.json"
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
DRAW = ("parent", "prompt_hash", "intended")
"""What a row was drawn from; the draws of one prompt are alike."""
SHOWN = (*DRAW, "text", "label", "reason")


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


def submit(server: ServerProcess, number: int) -> str:
    """Start the job; a repeat after a lost reply is the same job."""
    examples = [{"text": text, "label": label} for label, texts in LABELS.items() for text in texts]
    task = {"instruction": "What is the message about?", "labels": [{"name": name} for name in LABELS]}
    body = {"task": task, "examples": examples}
    seeds = server.ask("POST", "/seeds", json=body, headers={"Idempotency-Key": "seeds"})["id"]
    job = {"seeds": seeds, "settings": SETTINGS, "name": f"kill {number}"}
    return str(server.ask("POST", "/jobs", json=job, headers={"Idempotency-Key": f"job-{number}"})["id"])


def rows_of(server: ServerProcess, dataset: str) -> list[dict[str, Any]]:
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


def judge(server: ServerProcess, state: State, job: dict[str, Any]) -> dict[str, Any]:
    """Compare a finished job with the undisturbed one. The first one becomes it."""
    if job["status"] != "succeeded":
        return {"status": job["status"], "error": job["error"]}
    rows = rows_of(server, job["dataset"])
    ids = Counter(row["id"] for row in rows)
    texts = sorted([str(row.get(name)) for name in SHOWN] for row in rows)
    if not state.rows:
        state.rows = texts
    lost, more = _differences(state.rows, texts, len(DRAW))
    other, _ = _differences(state.rows, texts, len(SHOWN))
    return {
        "status": "succeeded",
        "rows": len(rows),
        "duplicated": sum(count - 1 for count in ids.values()) + more,
        "lost": lost,
        "other": other - lost,
        "gaps": _gaps(server, job["id"]),
    }


def _differences(wanted: list[list[str]], got: list[list[str]], columns: int) -> tuple[int, int]:
    """Rows that are missing and rows that are too many, by their first columns."""
    one, two = (Counter(tuple(row[:columns]) for row in rows) for rows in (wanted, got))
    return sum((one - two).values()), sum((two - one).values())


def _gaps(server: ServerProcess, job: str) -> int:
    """Events whose id is not the next one."""
    ids: list[int] = []
    while True:
        page = server.ask("GET", f"/jobs/{job}/events", params={"after": ids[-1] if ids else 0})
        ids += [one["id"] for one in page["data"]]
        if not page["has_more"]:
            return sum(got != wanted for got, wanted in zip(ids, range(1, len(ids) + 1), strict=True))


def choose(server: ServerProcess, source: random.Random) -> tuple[str, int | None]:
    """What to kill now; no process id for the server itself."""
    places = {"engine": server.find(ENGINE_NAME), "trainer": server.find(TRAINER_NAME)}
    weights = {name: weight for name, weight in TARGETS.items() if name == "server" or places[name]}
    target = source.choices(list(weights), list(weights.values()))[0]
    return target, source.choice(places[target]) if target != "server" else None


def disturb(server: ServerProcess, state: State, source: random.Random) -> None:
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


def watch(
    server: ServerProcess, state: State, job: str, given: argparse.Namespace, source: random.Random
) -> dict[str, Any]:
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
    total = {name: sum(one.get(name, 0) for one in ended) for name in ("duplicated", "lost", "gaps")}
    good = sum(one["status"] == "succeeded" for one in ended)
    same = sum(one["status"] == "succeeded" and not one["lost"] and not one["other"] for one in ended)
    anew = sum(one.get("other", 0) for one in ended)
    kills = ", ".join(f"{name} {count}" for name, count in sorted(state.kills.items()))
    return (
        f"{_count(state)} kills ({kills}); {len(ended)} jobs ended, {good} succeeded, {state.retries} retries; "
        f"{total['lost']} rows lost, {total['duplicated']} duplicated, {total['gaps']} gaps in events; "
        f"{same} of {good} with the rows of the undisturbed run, {anew} draws of the others with another text or label"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="DIR")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--shortest", type=float, default=5.0, help="seconds between two kills, at least")
    parser.add_argument("--longest", type=float, default=90.0, help="seconds between two kills, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto", help="of the engine")
    given = parser.parse_args()
    given.root.mkdir(parents=True, exist_ok=True)
    state = State.load(given.root)
    source = random.Random(f"{given.seed} {_count(state)}")  # noqa: S311 - chooses what to kill
    server = ServerProcess(given.root / "data", given.dtype)
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

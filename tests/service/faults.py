"""A server that runs one job to its end and can be killed at any durable step, and a look at what it left.

`python -m tests.service.faults DIR [--kill-at N] [--database-url URL] [--artifacts URL]` starts a whole server on the
folder, over the fake engine, with the one job `JOB`; started again it goes on. It sends itself SIGKILL before the Nth
durable step (commit, rename or fsync), and prints how many there were when it survives. `--stop-at CALL` sends itself
SIGSTOP at the Nth engine call. `--serve` is the real server process instead, until a signal; it prints its port.

`python -m tests.service.faults --each` reads lines of JSON, {"argv": […], "kills": […]}, and for each one runs the
program killed at every step of `kills` in turn and then to its end; {"argv", "code", "left"} says how it ended. It
forks, so that imports are paid for once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from sqlalchemy import Engine, event, select

from afdc.files import sha256_file
from afdc.wire.jobs import TERMINAL, TERMINAL_EVENTS
from afdc_pipeline.seams import EngineInfo
from afdc_server.db import schema
from afdc_server.db.database import Database
from afdc_server.db.open import open_database
from afdc_server.jobs import intake
from afdc_server.ledger.events import read_events
from afdc_server.ledger.schema import stages
from afdc_server.service.serve import configure_logging, serve
from afdc_server.service.startup import bind
from afdc_server.service.wiring import make_services
from tests.service.world import SlottedEngine, World, fake_parts, make_settings, seed_body, wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
JOB = f"job_{7:032x}"
SETTINGS: dict[str, Any] = {
    "augment": {"variants": 3, "rounds": 1, "context_seeds": 2},
    "loop": {"rounds": 1, "members": 1, "folds": 0},
}
AT_ONCE = 2


class Switch:
    """Counts durable steps of this process and kills it before the chosen one."""

    def __init__(self, kill_at: int) -> None:
        self.steps = 0
        self.kill_at = kill_at
        self._lock = threading.Lock()

    def arm(self) -> None:
        for name in ("fsync", "replace", "rename"):
            setattr(os, name, self._wrap(getattr(os, name)))
        event.listen(Engine, "commit", lambda _connection: self._step())

    def _step(self) -> None:
        with self._lock:
            self.steps += 1
            if self.steps == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def _wrap(self, real: Any) -> Any:
        def wrapped(*args: Any, **options: Any) -> Any:
            self._step()
            return real(*args, **options)

        return wrapped


class FaultyEngine(SlottedEngine):
    """The fake engine, noisy enough that some rows are rejected, which may stop its process or take long."""

    def __init__(self, given: argparse.Namespace) -> None:
        super().__init__(noise=2.5, on_call=self._disturb)
        self._given = given

    async def start(self) -> EngineInfo:
        if self._given.never_ready:
            await asyncio.Event().wait()
        return await super().start()

    def _disturb(self, _what: str) -> None:
        time.sleep(self._given.slow)
        if len(self.calls) == self._given.stop_at:
            os.kill(os.getpid(), signal.SIGSTOP)


def submit(world: World) -> None:
    """The seeds and the job, as a client that does not know whether it has sent them already."""
    intake.new_id = lambda _prefix: JOB  # type: ignore[attr-defined]  # the one job of every start
    with world.client() as client:
        seeds = client.post("/seeds", json=seed_body(), headers={"Idempotency-Key": "seeds"})
        assert seeds.status_code == 201, seeds.text
        body = {"seeds": seeds.json()["id"], "settings": SETTINGS}
        reply = client.post("/jobs", json=body, headers={"Idempotency-Key": "job"})
        assert reply.status_code == 202, reply.text


def run(given: argparse.Namespace) -> int:
    """The server until the job's end. Returns the exit code."""
    switch = Switch(given.kill_at)
    switch.arm()
    settings = make_settings(given.root, **chosen(given))
    world = World(settings, fake_parts(FaultyEngine(given)))
    world.start()
    submit(world)
    wait_for(lambda: find_job(world.services.db).status in TERMINAL, given.seconds)
    row = find_job(world.services.db)
    wait_for(lambda: not world.services.runner.running)  # another server may have brought it to its end
    print(json.dumps({"status": row.status, "error": row.error, "steps": switch.steps}), flush=True)
    return 0 if row.status == "succeeded" else 3


def chosen(given: argparse.Namespace) -> dict[str, Any]:
    """Settings of the server that stand on the command line."""
    names = {"database_url": given.database_url, "artifacts": given.artifacts, "lease_s": given.lease}
    secret = {"secret_file": given.secret} if given.secret else {}
    return {name: value for name, value in names.items() if value} | secret


def run_server(given: argparse.Namespace) -> int:
    """The server as it is started for real, but for its engine."""
    settings = make_settings(given.root, log_format="json", **chosen(given))
    settings.data.mkdir(parents=True, exist_ok=True)
    configure_logging(settings)
    listener = bind(settings)
    services = make_services(settings, fake_parts(FaultyEngine(given)))
    serve(services, listener, lambda: print(listener.getsockname()[1], flush=True))
    return 0


def run_each() -> None:
    """See the module's docstring."""
    waiting = [json.loads(line) for line in sys.stdin]
    running: dict[int, dict[str, Any]] = {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            one = waiting.pop(0)
            running[_fork([*one["argv"], "--kill-at", str(next(iter(one["kills"]), 0))])] = one
        pid, status = os.wait()
        one = running.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        if one["kills"] and code == -signal.SIGKILL:
            one["kills"].pop(0)
            waiting.insert(0, one)
        else:
            print(json.dumps({"argv": one["argv"], "code": code, "left": one["kills"]}), flush=True)


def _fork(argv: Sequence[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
            code = run(parse(argv))
    finally:
        os._exit(code)


@dataclass(frozen=True)
class Outcome:
    """What a finished job has left, without what differs from run to run."""

    rows: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    content: str
    counts: dict[str, Any]
    adapters: list[tuple[str, bool, bool]]


def examine(root: Path, database_url: str = "", artifacts: Path | None = None) -> Outcome:
    """Check everything that must hold of a job at its end, and tell what it made."""
    database = Database(open_database(database_url or f"sqlite:///{root / 'afdc.db'}"))
    store = artifacts or root / "artifacts"
    with database.read() as connection:
        row = connection.execute(select(schema.service_jobs)).one()
        events = read_events(connection, JOB)
        dataset = connection.execute(select(schema.datasets)).one()
        adapters = connection.execute(select(schema.adapters).order_by(schema.adapters.c.name)).all()
    database.close()
    assert (row.id, row.status, row.error, row.worker) == (JOB, "succeeded", None, None)
    assert [one.id for one in events] == list(range(1, len(events) + 1))
    kinds = Counter(one.kind for one in events)
    assert {kind: n for kind, n in kinds.items() if kind in TERMINAL_EVENTS} == {"job_succeeded": 1}
    assert events[-1].kind == "job_succeeded"
    check_stages(events)
    for one in (dataset, *adapters):
        check_files(store / one.location, one.files)
    for kind, ids in (("datasets", [dataset.id]), ("adapters", sorted(one.id for one in adapters))):
        assert sorted(path.name for path in (store / kind).iterdir() if path.name[0] != ".") == ids
    assert (dataset.job, row.dataset, [one.id for one in adapters if one.final]) == (JOB, dataset.id, [row.adapter])
    rows, rejected = (read_split(store / dataset.location / split) for split in ("data", "rejected"))
    assert len(rows) == dataset.rows == row.result["dataset"]["rows"]
    return Outcome(
        rows=rows,
        rejected=rejected,
        content=json.loads((store / dataset.location / "manifest.json").read_bytes())["content_sha256"],
        counts={"per_label": dataset.per_label, "rounds": kinds["round_finished"]},
        adapters=[(one.name, one.final, one.activated) for one in adapters],
    )


def check_stages(events: Sequence[Any]) -> None:
    """Each stage and each round is told to be finished once, since the last time that the job began anew."""
    begun = max((place for place, one in enumerate(events) if one.kind == "job_restarted"), default=0)
    for kind in ("stage_finished", "round_finished"):
        told = [(one.payload["round"], one.payload.get("stage")) for one in events[begun:] if one.kind == kind]
        assert len(told) == len(set(told)) > 0, told


def check_files(folder: Path, files: Sequence[dict[str, Any]]) -> None:
    """The folder holds these files and no others."""
    found = {path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.rglob("*") if path.is_file()}
    assert found == {one["path"]: one["sha256"] for one in files}


def read_split(folder: Path) -> list[dict[str, Any]]:
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    ids = [row["id"] for row in rows]
    assert len(ids) == len(set(ids))
    return rows


def find_job(database: Database) -> Any:
    with database.read() as connection:
        return connection.execute(select(schema.service_jobs).where(schema.service_jobs.c.id == JOB)).one()


def stages_of(data: Path, job: str) -> int:
    """Finished stages in the ledger."""
    database = Database(open_database(make_settings(data).database))
    with database.read() as connection:
        found = len(connection.execute(select(stages.c.stage).where(stages.c.job == job)).all())
    database.close()
    return found


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--kill-at", type=int, default=0)
    parser.add_argument("--stop-at", type=int, default=0)
    parser.add_argument("--database-url", default="")
    parser.add_argument("--artifacts", default="")
    parser.add_argument("--secret", type=Path)
    parser.add_argument("--lease", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--slow", type=float, default=0.0, help="seconds of each engine call")
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--serve", action="store_true")
    return parser.parse_args(argv)


def main() -> None:
    if sys.argv[1:] == ["--each"]:
        run_each()
        return
    given = parse()
    code = run_server(given) if given.serve else run(given)
    os._exit(code)  # threads of a server that was only borrowed


if __name__ == "__main__":
    main()

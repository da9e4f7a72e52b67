"""The API under load: idle event streams beside a steady stream of POSTs, and what they do to the latency of a GET.

    python -m benchmarks.service_load [--clients 10000] [--rate 50] [--seconds 60] [--gets 20]

Server and clients are two processes, each pinned to a core where there are two. The server is the real one (API, hub,
SQLite with fsync) without engine and runner: posted jobs wait in the queue. Every stream is an open connection to
`GET /jobs/{id}/events`; they are spread over 100 jobs, one of which is told to its watchers once a second. Exit
status 1: a mark is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

JOBS = 100
OPEN_AT_ONCE = 200
DECLARED = {202, 429, 503}
MARKS = {"get_p99_ms": 250, "above_idle_mib": 1024, "streams_lost": 0, "undeclared": 0}


@dataclass
class Stream(asyncio.Protocol):
    """One event stream: counts what comes, keeps nothing."""

    request: bytes
    opened: asyncio.Future[int]
    bytes: int = 0
    events: int = 0
    ended: bool = False
    _transport: asyncio.Transport | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if not self.bytes and not self.opened.done():
            self.opened.set_result(int(data.split(b" ", 2)[1]))
        self.bytes += len(data)
        self.events += data.count(b"\nid: ")

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        if not self.opened.done():
            self.opened.set_result(0)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


@dataclass
class Found:
    """What was measured. Latencies in seconds."""

    posts: Counter[int] = field(default_factory=Counter)
    post_s: list[float] = field(default_factory=list)
    get_s: list[float] = field(default_factory=list)
    gets: Counter[int] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)


def serve(data: Path) -> None:
    """The server process: prints its address and key, then serves until it is ended."""
    from afdc_server.heap import calm_collection
    from afdc_server.service.startup import raise_file_limit
    from tests.service.world import SlottedEngine, World, fake_parts, make_settings

    raise_file_limit()
    limits = {"tenant_jobs": 1_000_000, "queued_jobs": 1_000_000, "requests_per_minute": 10_000_000}
    world = World(make_settings(data, limits=limits), fake_parts(SlottedEngine()))
    world.start(with_runner=False)
    with calm_collection():
        print(json.dumps({"address": world.address, "key": world.key()}), flush=True)
        while True:
            time.sleep(3600)


def rss_mib(pid: int) -> float:
    """Resident memory of a process, MiB."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def open_streams(address: str, key: str, jobs: list[str], count: int) -> list[Stream]:
    """Open streams, some at once; returns those that were answered with 200."""
    host, port = address.removeprefix("http://").split(":")
    loop, gate = asyncio.get_running_loop(), asyncio.Semaphore(OPEN_AT_ONCE)

    async def one(number: int) -> Stream | None:
        path = f"/v1/jobs/{jobs[number % len(jobs)]}/events"
        head = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\nAccept: text/event-stream\r\n\r\n"
        )
        async with gate:
            opened: asyncio.Future[int] = loop.create_future()
            _, stream = await loop.create_connection(lambda: Stream(head.encode(), opened), host, int(port))
            return stream if await asyncio.wait_for(opened, 60) == 200 else None

    return [stream for stream in await asyncio.gather(*(one(number) for number in range(count))) if stream]


async def load(client: httpx.AsyncClient, seeds: str, jobs: list[str], args: argparse.Namespace, found: Found) -> None:
    """POSTs and GETs at fixed rates, whatever the answers take."""
    tasks: set[asyncio.Task[None]] = set()
    end = time.monotonic() + args.seconds

    async def every(rate: float, work: Any) -> None:
        number = 0
        begun = time.monotonic()
        while time.monotonic() < end:
            task = asyncio.create_task(work(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
            await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))

    async def post(number: int) -> None:
        body = {"seeds": seeds, "settings": {"augment": {"variants": 2}}}
        await timed(
            client.post("/jobs", json=body, headers={"Idempotency-Key": f"n{number}"}), found.posts, found.post_s
        )

    async def get(number: int) -> None:
        await timed(client.get(f"/jobs/{jobs[number % len(jobs)]}"), found.gets, found.get_s)

    async def timed(call: Any, counts: Counter[int], seconds: list[float]) -> None:
        begun = time.monotonic()
        try:
            counts[(await call).status_code] += 1
        except httpx.HTTPError as exc:
            found.failed[type(exc).__name__] += 1
        seconds.append(time.monotonic() - begun)

    await asyncio.gather(every(args.rate, post), every(args.gets, get), every(1.0, lambda n: nudge(client, jobs[0], n)))
    await asyncio.gather(*tasks)


async def nudge(client: httpx.AsyncClient, job: str, number: int) -> None:
    """An event for the watchers of one job."""
    await client.post(f"/jobs/{job}/{'resume' if number % 2 else 'pause'}")


async def measure(args: argparse.Namespace, address: str, key: str, pid: int) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=f"{address}/v1", headers=headers, timeout=60, limits=limits) as client:
        from tests.service.world import seed_body

        seeds = (await client.post("/seeds", json=seed_body())).json()["id"]
        body = {"seeds": seeds, "settings": {"augment": {"variants": 2}}}
        jobs = [(await client.post("/jobs", json=body)).json()["id"] for _ in range(JOBS)]
        idle, begun = rss_mib(pid), time.monotonic()
        streams = await open_streams(address, key, jobs, args.clients)
        opening = time.monotonic() - begun
        print(
            f"{len(streams)} streams open after {opening:.1f} s; server {idle:.0f} -> {rss_mib(pid):.0f} MiB",
            flush=True,
        )
        found, cpu = Found(), cpu_seconds(pid)
        await load(client, seeds, jobs, args, found)
        result = summarise(found, streams, idle, rss_mib(pid))
        result["server_cpu"] = round((cpu_seconds(pid) - cpu) / args.seconds, 2)
        for stream in streams:
            stream.close()
        return {**result, "opening_s": round(opening, 1)}


def summarise(found: Found, streams: list[Stream], idle: float, loaded: float) -> dict[str, Any]:
    """The numbers, and which of them miss their mark."""
    quantiles = statistics.quantiles(found.get_s, n=100)
    undeclared = {status: n for status, n in found.posts.items() if status not in DECLARED}
    return {
        "streams": len(streams),
        "streams_lost": sum(stream.ended for stream in streams),
        "events_received": sum(stream.events for stream in streams),
        "posts": dict(found.posts),
        "gets": dict(found.gets),
        "undeclared": undeclared,
        "failed": dict(found.failed),
        "get_p50_ms": round(quantiles[49] * 1000, 1),
        "get_p99_ms": round(quantiles[98] * 1000, 1),
        "post_p99_ms": round(statistics.quantiles(found.post_s, n=100)[98] * 1000, 1),
        "idle_mib": round(idle),
        "loaded_mib": round(loaded),
        "above_idle_mib": round(loaded - idle),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=50, help="POST /jobs a second")
    parser.add_argument("--gets", type=float, default=20, help="GET /jobs/{id} a second")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, args.clients + 1000)), hard))
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="afdc-load-") as folder:
        command = [sys.executable, "-m", "benchmarks.service_load", "--serve", folder]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            os.sched_setaffinity(server.pid, cores[:1])
            os.sched_setaffinity(0, cores[-1:])
            assert server.stdout is not None
            told = json.loads(server.stdout.readline())
            result = asyncio.run(measure(args, told["address"], told["key"], server.pid))
        finally:
            server.kill()
            server.wait()
    print(json.dumps(result, indent=2))
    result["undeclared"] = sum(result["undeclared"].values()) + sum(result["failed"].values())
    missed = [name for name, mark in MARKS.items() if result[name] > mark]
    for name, mark in MARKS.items():
        print(f"{name}: {result[name]} (at most {mark}): {'MISSED' if name in missed else 'reached'}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()

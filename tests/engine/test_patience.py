"""Time in which this process was stopped is nobody's delay."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from afdc_server.engine.patience import LATE_SECONDS, Patience, within

ROOT = Path(__file__).parents[2]
OWNER = """
import asyncio
from tests.engine.test_supervisor import make_supervisor
from tests.fakes.backend import World

async def main():
    supervisor = make_supervisor(World(), hang_timeout_s=1.5)
    await supervisor.start()

    async def slow(backend):  # the engine stands still with its owner, and needs a second of its own time
        print("asked", flush=True)
        for _ in range(50):
            await asyncio.sleep(0.02)

    await supervisor.run(slow)
    print(supervisor.restarts, flush=True)
    await supervisor.close()

asyncio.run(main())
"""


def test_a_late_look_begins_anew() -> None:
    now = 0.0
    patience = Patience(lambda: now)
    for now in (1.0, 2.0, 3.0):
        assert patience.waited() == now
    now += LATE_SECONDS + 1
    assert patience.waited() == 0.0
    now += 1.0
    assert patience.waited() == 1.0
    patience.renew()
    assert patience.waited() == 0.0


async def test_within_ends_what_takes_too_long() -> None:
    async def forever() -> None:
        await asyncio.sleep(60)

    work = asyncio.ensure_future(forever())
    with pytest.raises(TimeoutError, match=r"0\.1 s"):
        await within(0.1, work)
    assert work.cancelled()


async def test_within_hands_on_results_errors_and_cancellations() -> None:
    async def answer() -> int:
        await asyncio.sleep(0.01)
        return 7

    async def fail() -> None:
        raise KeyError("x")

    assert await within(5, answer()) == 7
    with pytest.raises(KeyError):
        await within(5, fail())
    inner = asyncio.ensure_future(asyncio.sleep(60))
    outer = asyncio.ensure_future(within(90, inner))
    await asyncio.sleep(0.01)
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
    assert inner.cancelled()


def test_a_stopped_owner_does_not_take_its_engine_for_hung() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, cwd=ROOT) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "asked\n"
        os.kill(owner.pid, signal.SIGSTOP)
        time.sleep(LATE_SECONDS + 1.5)
        os.kill(owner.pid, signal.SIGCONT)
        assert owner.stdout.readline() == "0\n"
    assert owner.returncode == 0

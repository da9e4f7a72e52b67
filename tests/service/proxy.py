"""A TCP proxy on loopback that cuts connections where a test wants it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

PIECE = 1 << 14


@dataclass(frozen=True)
class Cut:
    """Cut once `after` bytes have passed: `up` to the server, `down` to the client.

    down with `after=0`: the server has answered, and nothing of it arrives.
    """

    direction: Literal["up", "down"]
    after: int


Plan = Callable[[int], Cut | None]
"""What happens to the connection with this number, from 0 on."""


class FaultProxy:
    """Runs on a loop in a thread of its own. `connections`: how many there were."""

    def __init__(self, target: str, plan: Plan) -> None:
        self.connections = 0
        self.address = ""
        self._host, port = target.removeprefix("http://").rsplit(":", 1)
        self._port = int(port)
        self._plan = plan
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._over.wait()
        server.close()
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait(5)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(5)
        self._loop.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cut = self._plan(self.connections)
        self.connections += 1
        there_reader, there_writer = await asyncio.open_connection(self._host, self._port)
        up = cut.after if cut and cut.direction == "up" else None
        down = cut.after if cut and cut.direction == "down" else None
        pumps = {
            asyncio.create_task(_pump(reader, there_writer, up)),
            asyncio.create_task(_pump(there_reader, writer, down)),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            for end in (writer, there_writer):
                end.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None) -> None:
    """Pass bytes on until the end, or until `limit` of them have passed and one more has come."""
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(PIECE):
            passed = piece if limit is None else piece[:limit]
            writer.write(passed)
            await writer.drain()
            if limit is not None:
                limit -= len(passed)
                if len(passed) < len(piece):
                    return


@contextmanager
def proxied(target: str, plan: Plan) -> Iterator[FaultProxy]:
    """A proxy before `target` until the end of the block."""
    proxy = FaultProxy(target, plan)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


def first(*cuts: Cut) -> Plan:
    """These, one a connection; the later ones are whole."""
    return lambda number: cuts[number] if number < len(cuts) else None


def always(cut: Cut) -> Plan:
    """Every connection."""
    return lambda _number: cut

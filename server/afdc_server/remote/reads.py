"""Puts one-token reads that are asked for at the same time into few HTTP requests.

The server spends more than a millisecond on a request and microseconds on a log-prob in its answer. One request takes
many prompts but one list of token ids: reads of the same trie node go together, and others where their lists are short.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from afdc.errors import RequestRejectedError
from afdc_server.engine.backend import ReadAnswer
from afdc_server.engine.tasks import all_or_none
from afdc_server.engine.trie import MAX_IDS_PER_READ

MOST_READS = 16  # a request: an answer comes once its slowest read is done
WORTH = 100  # log-probs that nobody asked for, about as costly as a request more


@dataclass(eq=False, slots=True)
class Read:
    """A read that waits for its answer."""

    model: str
    prompt: Sequence[int]
    ids: tuple[int, ...]
    answer: asyncio.Future[ReadAnswer]


@dataclass(slots=True)
class ReadBatch:
    """Reads for one request, whose answer has every one of `ids` for each of them."""

    reads: list[Read] = field(default_factory=list)
    ids: dict[int, None] = field(default_factory=dict)  # a set that keeps its order

    def takes(self, read: Read) -> bool:
        """Whether `read` may join: same model, room, and not too much read for nothing."""
        n, new = len(self.reads), sum(token not in self.ids for token in read.ids)
        if n == 0:
            return True
        if n == MOST_READS or len(self.ids) + new > MAX_IDS_PER_READ or read.model != self.reads[0].model:
            return False
        return n * new + len(self.ids) + new - len(read.ids) <= WORTH

    def add(self, read: Read) -> None:
        self.reads.append(read)
        self.ids |= dict.fromkeys(read.ids)


Send = Callable[[ReadBatch], Awaitable[list[ReadAnswer]]]


def pack(reads: Iterable[Read]) -> list[ReadBatch]:
    """Distribute reads over batches; reads of equal ids come to lie side by side."""
    batches = [ReadBatch()]
    for read in sorted(reads, key=lambda one: (one.model, one.ids)):
        if not batches[-1].takes(read):
            batches.append(ReadBatch())
        batches[-1].add(read)
    return [batch for batch in batches if batch.reads]


class ReadBatcher:
    """Collects the reads of one turn of the event loop, and sends them.

    Args:
        send: one request; answers in the order of the batch's reads. RequestRejectedError means that at least one of
            the reads can never succeed: the batch is halved until it is found.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: list[Read] = []
        self._running: set[asyncio.Task[None]] = set()

    async def read(self, model: str, prompt: Sequence[int], ids: Sequence[int]) -> ReadAnswer:
        loop = asyncio.get_running_loop()
        read = Read(model, prompt, tuple(ids), loop.create_future())
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append(read)
        return await read.answer

    def close(self) -> None:
        """Give up whatever still runs."""
        for task in self._running:
            task.cancel()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for batch in pack(read for read in waiting if not read.answer.done()):
            task = asyncio.create_task(self._settle(batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            for read in batch.reads:
                read.answer.add_done_callback(partial(_cancel_if_unwanted, batch, task))

    async def _settle(self, batch: ReadBatch) -> None:
        """Send, and give every read its answer or its error."""
        try:
            answers = await self._send(batch)
        except RequestRejectedError as exc:
            if len(batch.reads) > 1:
                await all_or_none(self._settle(half) for half in _halves(batch))
            else:
                _fail(batch, exc)
        except BaseException as exc:  # also a cancellation: nobody may wait for an answer that never comes
            _fail(batch, exc)
            if not isinstance(exc, Exception):
                raise
        else:
            for read, answer in zip(batch.reads, answers, strict=True):
                if not read.answer.done():
                    read.answer.set_result(answer)


def _cancel_if_unwanted(batch: ReadBatch, task: asyncio.Task[None], _: asyncio.Future[ReadAnswer]) -> None:
    if all(read.answer.cancelled() for read in batch.reads):
        task.cancel()


def _halves(batch: ReadBatch) -> list[ReadBatch]:
    wanted = [read for read in batch.reads if not read.answer.done()]
    middle = (len(wanted) + 1) // 2
    halves = []
    for part in filter(None, (wanted[:middle], wanted[middle:])):
        halves.append(ReadBatch())
        for read in part:
            halves[-1].add(read)
    return halves


def _fail(batch: ReadBatch, exc: BaseException) -> None:
    for read in batch.reads:
        if read.answer.done():
            continue
        if isinstance(exc, Exception):
            read.answer.set_exception(exc)
        else:
            read.answer.cancel()

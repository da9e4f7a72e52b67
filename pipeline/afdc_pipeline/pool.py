"""D1 on disk: the accepted candidates of the filter stages, read chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from afdc.files import canonical_json, sha256_bytes
from afdc_pipeline.rows import Candidate
from afdc_pipeline.seams import ChunkRecord, Ledger, RowStore, StageKey

DROP = "drop"
DETAIL = "detail"
UNLABELED = "unlabeled"
"""The stage that takes the user's texts."""


@dataclass(frozen=True)
class PoolChunk:
    """One chunk of the pool: `index` runs through the whole pool, `start` is the position of its first candidate.

    `real`: its texts are the user's own; generated ones lie in chunks apart.
    """

    index: int
    ref: str
    start: int
    size: int
    real: bool


class Pool:
    """The candidates of several filter stages as one ordered sequence. Only the list of chunks is in memory."""

    def __init__(self, ledger: Ledger, store: RowStore, keys: Sequence[StageKey]) -> None:
        self._store = store
        self.keys = tuple(keys)
        records = [(record, key.stage == UNLABELED) for key in keys for record in ledger.chunks(key)]
        self._chunks = list(_positions(records))
        self.size = sum(chunk.size for chunk in self._chunks)
        self.digest = sha256_bytes(canonical_json([chunk.ref for chunk in self._chunks]))

    def chunks(self) -> Sequence[PoolChunk]:
        """Every chunk, in order; one whose candidates were all dropped is among them."""
        return self._chunks

    def read(self, chunk: PoolChunk) -> list[Candidate]:
        """The accepted candidates of a chunk."""
        return [to_candidate(row) for row in self._store.get(chunk.ref) if not row[DROP]]

    def dropped(self) -> Iterator[tuple[Candidate, str, str]]:
        """Every text that the filters left out, with the reason and what the engine said, where it refused it."""
        for chunk in self._chunks:
            for row in self._store.get(chunk.ref):
                if row[DROP]:
                    yield to_candidate(row), row[DROP], row[DETAIL]


def to_candidate(row: dict[str, object]) -> Candidate:
    """The candidate of a filter row."""
    return Candidate.from_row({name: value for name, value in row.items() if name not in (DROP, DETAIL)})


def _positions(records: Sequence[tuple[ChunkRecord, bool]]) -> Iterator[PoolChunk]:
    start = 0
    for index, (record, real) in enumerate(records):
        size = int(record.counters["accepted"])
        yield PoolChunk(index, record.ref, start, size, real)
        start += size

"""AFDC: the remote engine, chunks of rows in the Parquet store, each committed in the SQLite ledger."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from common import arguments, measure, prompts

from afdc.engine_config import EngineConfig
from afdc_pipeline.seams import ChunkRecord, Generated, GenerateRequest, Sampling, StageKey
from afdc_server.heap import calm_collection
from afdc_server.ledger import SqlLedger, open_sqlite
from afdc_server.models import resolve_model
from afdc_server.remote.engine import connect_engine
from afdc_server.remote.server import RemoteServer
from afdc_server.store import ParquetStore

CHUNK = 512  # texts in a file; the product's own bound is 512 requests


def rows(answers: Sequence[Generated]) -> list[dict[str, object]]:
    return [
        {"id": f"{one.id}-{i}", "text": c.text, "tokens": c.tokens, "mean_logprob": c.mean_logprob}
        for one in answers
        for i, c in enumerate(one.completions)
    ]


async def generate() -> int:
    """Every text is on disk and committed when this returns."""
    store, ledger = ParquetStore(args.out / "chunks"), SqlLedger(open_sqlite(args.out / "ledger.db"), "bench")
    await engine.start()
    sampling = Sampling(temperature=1.0, max_tokens=64)
    asked = [GenerateRequest(str(i), text, args.draws, sampling) for i, text in enumerate(prompts(args.prompts))]
    done, total, waiting = 0, 0, list[Generated]()

    def flush() -> None:
        made = rows(waiting)
        ledger.commit_chunk(StageKey(1, "augment"), "inputs", ChunkRecord(done, store.put(made), len(made), {}))
        waiting.clear()

    async for one in engine.generate(asked):
        waiting.append(one)
        total += len(one.completions)
        if len(waiting) * args.draws >= CHUNK:
            flush()
            done += 1
    if waiting:
        flush()
    await engine.close()
    return total


args = arguments()
server, config = RemoteServer(args.url, served_name="canned"), EngineConfig(max_in_flight=args.parallel)
engine = connect_engine(resolve_model("", "cpu"), server, config, args.out)


def run() -> int:
    """As `afdc run` does it."""
    with calm_collection():
        return asyncio.run(generate())


measure(run)

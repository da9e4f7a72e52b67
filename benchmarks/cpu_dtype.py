"""What the engine's numbers cost on this CPU: generation and label scores in bfloat16 and in float32, side by side.

    python -m benchmarks.cpu_dtype [--data DIR] [--requests 32] [--texts 64] [--repeats 2]

Prompts are those of an augment round over DIR's train.jsonl (or the project's example seeds), texts are its first ones.
The two engines alternate, each started anew, warmed up, and closed again: both would not fit the cores at once. Ratios
are those of means. CPUs without instructions for bfloat16 convert every product, which is why `engine.dtype = "auto"`
asks what the CPU has (docs/engine.md).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from afdc.engine_config import EngineConfig, EngineDType
from afdc.inputs import read_task
from afdc_server.cpu import has_bfloat16
from afdc_server.engine.build import make_engine
from afdc_server.models import resolve_model
from benchmarks.generate_speed import EXAMPLE, make_requests, read_rows, run_own

DTYPES: tuple[EngineDType, ...] = ("bfloat16", "float32")


async def measure_one(dtype: EngineDType, args: argparse.Namespace) -> tuple[float, float]:
    """Tokens a second written and texts a second scored, prefix cache emptied before each."""
    requests, task = make_requests(args.data, args.requests, args.draws), read_task(args.data / "task.json")
    texts = [row.text for row in read_rows(args.data, task)[: args.texts]]
    with tempfile.TemporaryDirectory() as logs:
        config = EngineConfig(device="cpu", dtype=dtype)
        engine: Any = make_engine(resolve_model(args.model, "cpu"), config, Path(logs))
        await engine.start()
        try:
            llm = engine.supervisor.backend.llm
            await run_own(engine, requests[:4])
            await llm.reset_prefix_cache()
            started = time.perf_counter()
            tokens = await run_own(engine, requests)
            written = tokens / (time.perf_counter() - started)
            await llm.reset_prefix_cache()
            started = time.perf_counter()
            await engine.score(texts, task)
            return written, len(texts) / (time.perf_counter() - started)
        finally:
            await engine.close()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both dtypes in turn, and the ratios."""
    found: dict[str, list[tuple[float, float]]] = {dtype: [] for dtype in DTYPES}
    for _ in range(args.repeats):
        for dtype in DTYPES:
            found[dtype].append(asyncio.run(measure_one(dtype, args)))
    means = {name: [statistics.mean(side) for side in zip(*pairs, strict=True)] for name, pairs in found.items()}
    ratios = [one / two for one, two in zip(means["float32"], means["bfloat16"], strict=True)]
    return {
        "cpu_has_bfloat16": has_bfloat16(),
        **{f"{name}_tokens_per_s": round(rates[0], 1) for name, rates in means.items()},
        **{f"{name}_texts_per_s": round(rates[1], 1) for name, rates in means.items()},
        "float32_over_bfloat16": {"generate": round(ratios[0], 2), "score": round(ratios[1], 2)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=EXAMPLE)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", default="")
    print(json.dumps(measure(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()

"""The labelling encoder in float32 and in bfloat16 by `torch.autocast`, side by side: seconds, and what it gets right.

    python -m benchmarks.encoder_dtype --data DIR [--shots 8] [--draws 3] [--test-limit 500] [--epochs 20]

DIR has task.json, train.jsonl and test.jsonl; draws are those of `benchmarks.quality`. Each draw's seeds tune the
encoder in both, in turn, as round 0 does, and the test texts are labelled. Seconds are those of this process's CPUs;
ratios are those of sums.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from afdc.config import EncoderConfig
from afdc_server.encoder import resolve_encoder
from afdc_trainer.encoder.fit import Head, Rows, tune
from afdc_trainer.encoder.model import SentenceEncoder
from afdc_trainer.model import fast_dtype
from afdc_trainer.run import make_deterministic
from benchmarks.quality.tasks import Drawn, DrawSpec, draw_rows, read_folder

DTYPES = (torch.float32, torch.bfloat16)


@dataclass
class Side:
    """What one dtype took and found, over all draws."""

    tuning: float = 0.0
    encoding: float = 0.0
    labels: list[np.ndarray[Any, np.dtype[np.int64]]] = field(default_factory=list)


def run(drawn: Drawn, names: list[str], dtype: torch.dtype, epochs: int, side: Side) -> None:
    """Tune on the seeds, label the test texts."""
    gold = np.array([names.index(row.label or "") for row in drawn.seeds], dtype=np.int64)
    texts, once = [row.text for row in drawn.seeds], np.ones(len(gold))
    rows = Rows(texts, gold, once.astype(np.float32), once.astype(np.int64))
    torch.manual_seed(1)
    encoder = SentenceEncoder(resolve_encoder("").path, EncoderConfig(device="cpu"), dtype)
    started = time.process_time()
    tune(encoder, rows, EncoderConfig(device="cpu"), epochs, 1)
    tuned = time.process_time()
    head = Head(encoder.encode(texts), rows, len(names))
    logprobs = head.logprobs(encoder.encode([row.text for row in drawn.test]))
    side.tuning += tuned - started
    side.encoding += time.process_time() - tuned
    side.labels.append(logprobs.argmax(axis=1))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every draw in both, and the ratios."""
    make_deterministic(cpu=True)
    task, sides = read_folder(args.data), {dtype: Side() for dtype in DTYPES}
    names, gold = list(task.task.names), []
    for number in range(args.draws):
        drawn = draw_rows(task, DrawSpec(shots=args.shots, draw=number, test_limit=args.test_limit))
        gold.append(np.array([names.index(row.label or "") for row in drawn.test]))
        for dtype, side in sides.items():
            run(drawn, names, dtype, args.epochs, side)
    slow, fast = sides.values()
    pairs = list(zip(slow.labels, fast.labels, gold, strict=True))
    return {
        "cpu_has_bfloat16": fast_dtype(torch.device("cpu")) == torch.bfloat16,
        "float32_right": [round(float((one == right).mean()), 3) for one, _, right in pairs],
        "bfloat16_right": [round(float((two == right).mean()), 3) for _, two, right in pairs],
        "same_label": [round(float((one == two).mean()), 3) for one, two, _ in pairs],
        "float32_seconds": {"tune": round(slow.tuning, 1), "encode": round(slow.encoding, 1)},
        "bfloat16_seconds": {"tune": round(fast.tuning, 1), "encode": round(fast.encoding, 1)},
        "float32_over_bfloat16": {
            "tune": round(slow.tuning / fast.tuning, 2),
            "encode": round(slow.encoding / fast.encoding, 2),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--test-limit", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=20)
    print(json.dumps(measure(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()

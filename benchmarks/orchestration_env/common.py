"""What the sides of the comparison share: their arguments, their prompts and how they measure themselves.

Only the standard library: it is imported in virtual environments that do not have this project.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

BACKGROUND = "A customer writes to the support desk of a bank about a card, a transfer or a fee. " * 3


def prompts(count: int) -> list[str]:
    """About 60 tokens each, all different."""
    return [f"{BACKGROUND}Message number {i}:" for i in range(count)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True, help="of the endpoint, without /v1")
    parser.add_argument("--prompts", type=int, required=True)
    parser.add_argument("--draws", type=int, required=True, help="texts for each prompt")
    parser.add_argument("--parallel", type=int, required=True, help="requests at once")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder for what is written")
    parser.add_argument("--core", type=int, required=True, help="the core for this process and its children")
    args = parser.parse_args()
    os.sched_setaffinity(0, {args.core})
    return args


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def measure(run: Callable[[], int]) -> None:
    """Time `run`, which writes texts to disk and returns how many, and print the result as the last line."""
    begun, cpu = time.perf_counter(), cpu_seconds()
    records = run()
    seconds, spent = time.perf_counter() - begun, cpu_seconds() - cpu
    print(json.dumps({"records": records, "seconds": seconds, "cpu_seconds": spent}), flush=True)

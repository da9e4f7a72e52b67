"""Peak memory of the loop against the size of the pool, with the fake engine and trainer of the tests.

    python -m benchmarks.memory_curve [--sizes 1000,10000,100000,1000000] [--out DIR]

Each size runs in a process of its own: generate, filter, deduplicate, score with two scorers, select, train, relabel,
export. Prints peak resident memory (VmHWM), the growth a candidate, and seconds.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from afdc.presets import build_config
from afdc_pipeline.outcome import kept_rows, rejected_rows
from afdc_server.export.card import CardFacts
from afdc_server.export.dataset import write_dataset
from tests.fakes.engine import FakeEngine
from tests.fakes.job import TASK, make_job, make_seeds

SEEDS_PER_LABEL = 20


def run_size(size: int, root: Path) -> None:
    """One job with about `size` candidates; prints `candidates peak_mib seconds`."""
    seeds = make_seeds(per_label=SEEDS_PER_LABEL)
    variants = -(-size // len(seeds))
    sections = {
        "augment": {"variants": variants, "rounds": 1, "near_duplicate": 0.95},
        "loop": {"members": 1, "rounds": 1},
    }
    started = time.monotonic()
    job = make_job(root, build_config("default", sections), engine=FakeEngine(), seeds=seeds)
    job.engine.calls = _Forgetful()
    state = job.run()
    facts = CardFacts(task=TASK, config=job.ctx.config, job="job-test", model="fake")
    write_dataset(root / "dataset", kept_rows(job.ctx, state), rejected_rows(job.ctx, state), facts)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(state.pool.size, f"{peak:.1f}", f"{time.monotonic() - started:.1f}")


class _Forgetful(list[str]):
    """The fake engine's list of calls, which would itself grow with the pool."""

    def append(self, _item: str) -> None:
        """Not kept."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,10000,100000,1000000")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--one", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return run_size(args.one, args.out)
    print(f"{'candidates':>12} {'peak MiB':>10} {'seconds':>9} {'rows/s':>8}")
    points = []
    for size in map(int, args.sizes.split(",")):
        with tempfile.TemporaryDirectory(dir=args.out) as root:
            command = [sys.executable, "-m", "benchmarks.memory_curve", "--one", str(size), "--out", root]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        count, peak, seconds = map(float, done.stdout.split())
        points.append((count, peak))
        print(f"{count:12,.0f} {peak:10.1f} {seconds:9.1f} {count / seconds:8.0f}", flush=True)
    (n0, m0), (n1, m1) = points[0], points[-1]
    growth = (m1 - m0) * 2**20 / max(n1 - n0, 1)
    print(f"peak memory at {n1:,.0f} / at {n0:,.0f} candidates = {m1 / m0:.2f}; {growth:.0f} bytes a candidate")
    return None


if __name__ == "__main__":
    main()

"""Real lift: seeds drawn from a data folder, the whole `afdc run`, accuracy on all its test texts.

    python -m benchmarks.lift --data DIR --shots 8 --runs 2 --out runs/lift [--preset paper] [flags of afdc run]

DIR holds train.jsonl, test.jsonl and task.json. Each run draws its own seeds (a seeded shuffle of train) and has
its own training seed. A run that was finished before is read, not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afdc.task import Example
from benchmarks.quality.tasks import DrawSpec, draw_rows, read_folder


def write_jsonl(path: Path, rows: Sequence[Example]) -> None:
    lines = [json.dumps({"text": row.text, "label": row.label}, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def run_once(args: argparse.Namespace, number: int, extra: list[str]) -> dict[str, Any]:
    """One `afdc run` on its own draw of seeds; returns result.json."""
    root = args.out / f"{args.data.name}-{args.preset}-{number}"
    root.mkdir(parents=True, exist_ok=True)
    drawn = draw_rows(read_folder(args.data), DrawSpec(args.shots, number))
    write_jsonl(root / "seeds.jsonl", drawn.seeds)
    write_jsonl(root / "eval.jsonl", drawn.test)
    command = [sys.executable, "-m", "afdc", "run", "--json", "--preset", args.preset, "--seed", str(number)]
    command += ["--seeds", str(root / "seeds.jsonl"), "--task", str(args.data / "task.json")]
    command += ["--eval", str(root / "eval.jsonl"), "--out", str(root / "run"), *extra]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def describe(results: list[dict[str, Any]]) -> None:
    """A line a run, then the means."""
    print(f"{'run':>4} {'base':>7} {'seeds':>7} {'final':>7} {'gain':>7} {'rows':>6} {'minutes':>8}  rounds")
    for number, result in enumerate(results):
        score = result["eval"]
        rounds = " ".join(f"{r['eval']['accuracy']:.3f}/{r['selected']}" for r in result["rounds"])
        print(
            f"{number:>4} {score['base']:7.3f} {score['seeds_only']:7.3f} {score['final']:7.3f} "
            f"{score['final'] - score['seeds_only']:+7.3f} {result['dataset']['rows']:>6} "
            f"{result['usage']['wall_seconds'] / 60:8.1f}  {rounds}"
        )
    finals = [r["eval"]["final"] for r in results]
    seeds_only = [r["eval"]["seeds_only"] for r in results]
    spread = statistics.stdev(finals) if len(finals) > 1 else 0.0
    print(
        f"mean final {statistics.mean(finals):.3f} (sd {spread:.3f}), seeds-only {statistics.mean(seeds_only):.3f}, "
        f"lift {statistics.mean(finals) - statistics.mean(seeds_only):+.3f}, n = {results[0]['eval']['n']} test texts"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--out", type=Path, default=Path("runs/lift"))
    args, extra = parser.parse_known_args()
    describe([run_once(args, number, extra) for number in range(args.runs)])


if __name__ == "__main__":
    main()

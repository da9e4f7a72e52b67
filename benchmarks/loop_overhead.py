"""Share of a run's wall time outside engine, trainer and process start.

    python -m benchmarks.loop_overhead RUN_DIR...

Reads result.json of finished runs (`afdc run` writes it). Engine seconds are those with at least one request running;
trainer seconds are whole training stages; start-up is the engine's. What is left is the loop's own: filters,
duplicates, selection, ledger, files, export and report.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def own_share(folder: Path) -> tuple[float, float]:
    """(wall seconds, share of them that the loop itself took)."""
    usage = json.loads((folder / "result.json").read_text())["usage"]
    elsewhere = sum(usage[f"{part}_seconds"] for part in ("engine", "trainer", "encoder", "startup"))
    return usage["wall_seconds"], 1 - elsewhere / usage["wall_seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    for folder in parser.parse_args().runs:
        wall, share = own_share(folder)
        print(f"{folder}: {wall:.0f} s wall, {share:.1%} of it the loop's own")


if __name__ == "__main__":
    main()

"""What is in a data set that the loop made: are its labels right, is it varied, is it balanced?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.quality.encoder import Vectors

NEAR = 0.95  # cosine at which two texts say the same


def label_precision(rows: Sequence[Mapping[str, Any]], truth: Mapping[str, str]) -> dict[str, float | int | None]:
    """Share of rows whose label is the true one, over all of them and by source.

    Args:
        rows: kept rows without the seeds, with `text`, `label` and `source`.
        truth: gold label of real texts, the judge's label of generated ones.
    """
    right = [(row["source"], truth[row["text"]] == row["label"]) for row in rows]
    by_source = {source: [hit for name, hit in right if name == source] for source in ("generated", "unlabeled")}
    out: dict[str, float | int | None] = {"precision": share([hit for _, hit in right]), "rows": len(right)}
    for source, hits in by_source.items():
        out |= {f"precision_{source}": share(hits), f"rows_{source}": len(hits)}
    return out


def share(hits: Sequence[bool]) -> float | None:
    """Mean of truth values; None without any."""
    return sum(hits) / len(hits) if hits else None


def label_balance(labels: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Rows by label, the share of labels with a row, and the entropy of the mix over its largest value (1: even)."""
    counts = Counter(labels)
    total = sum(counts.values())
    entropy = -sum(n / total * math.log(n / total) for n in counts.values())
    return {
        "by_label": {name: counts[name] for name in names},
        "coverage": sum(name in counts for name in names) / len(names),
        "evenness": entropy / math.log(len(names)),
    }


def spread(texts: Vectors, seeds: Vectors) -> dict[str, float | None]:
    """Mean cosine distance to the nearest seed, and the share of texts that have a near twin among the others."""
    if not len(texts):
        return {"seed_distance": None, "near_twins": None}
    nearest = (texts @ seeds.T).max(axis=1)
    twins = texts @ texts.T
    np.fill_diagonal(twins, -1.0)
    return {"seed_distance": float(1 - nearest.mean()), "near_twins": float((twins.max(axis=1) >= NEAR).mean())}


def duplicates(dropped: Mapping[str, int], generated: int) -> dict[str, float | int]:
    """Generated texts that the filters dropped as repeats, and their share of all texts that were written."""
    count = dropped.get("exact_duplicate", 0) + dropped.get("near_duplicate", 0)
    return {"duplicates": count, "duplicate_share": count / generated if generated else 0.0}

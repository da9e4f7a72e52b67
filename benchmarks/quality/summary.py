"""Numbers over draws: means, spread, gap closed, and paired differences with their standard error."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
FLOOR, CEILING = "seeds-only", "gold"


@dataclass(frozen=True)
class Line:
    """A method on a task, over its draws. Shares are in 0..1; None where there is nothing to compute from.

    Attributes:
        sd: standard deviation over draws; None for one.
        lift, lift_error: mean difference to seeds-only, paired by draw, and its standard error (None for one draw).
        judge: accuracy of the judge of `precision` on the test set.
        earlier: a record of it was made with other code than today's.
        gap: gap closed: (method - seeds-only) / (gold - seeds-only), of means over the draws that all three have.
        worst: smallest difference to seeds-only in one draw.
    """

    task: str
    method: str
    draws: int
    accuracy: float
    sd: float | None
    lift: float | None
    lift_error: float | None
    macro_f1: float
    ece: float | None
    ece_raw: float | None
    gap: float | None
    worst: float | None
    precision: float | None
    judge: float | None
    coverage: float | None
    duplicate_share: float | None
    seed_distance: float | None
    rows: float | None
    tokens: float | None
    flips: tuple[float, ...]
    seconds: float
    earlier: bool


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences (default - variant) and its standard error (None for a single pair)."""

    variant: str
    task: str
    pairs: int
    mean: float
    error: float | None


def gap_closed(method: float, floor: float, ceiling: float) -> float | None:
    """Share of the way from the floor to the ceiling; None where there is no way."""
    return (method - floor) / (ceiling - floor) if ceiling > floor else None


def summarise(records: Iterable[Record]) -> list[Line]:
    """A line for each task and method in the order in which they first appear; variants are left out."""
    groups: dict[tuple[str, str], dict[int, Record]] = {}
    for record in records:
        if not record["variant"]:
            groups.setdefault((record["task"], record["method"]), {})[record["draw"]] = record
    return [_line(task, method, found, groups) for (task, method), found in groups.items()]


def _line(task: str, method: str, found: dict[int, Record], groups: dict[tuple[str, str], dict[int, Record]]) -> Line:
    floor, ceiling = groups.get((task, FLOOR), {}), groups.get((task, CEILING), {})
    rows = [found[draw] for draw in sorted(found)]
    accuracies = [row["accuracy"] for row in rows]
    paired = [found[draw]["accuracy"] - floor[draw]["accuracy"] for draw in found if draw in floor]
    data = [row["data"] for row in rows if "data" in row]
    spent = [sum(row["tokens"].values()) for row in rows if "tokens" in row]
    return Line(
        task=task,
        method=method,
        draws=len(rows),
        accuracy=statistics.mean(accuracies),
        sd=statistics.stdev(accuracies) if len(rows) > 1 else None,
        lift=_mean(paired),
        lift_error=standard_error(paired),
        macro_f1=statistics.mean(row["macro_f1"] for row in rows),
        ece=_mean(row["ece"] for row in rows),
        ece_raw=_mean(row.get("ece_raw") for row in rows),
        gap=_gap(found, floor, ceiling),
        worst=min(paired, default=None),
        precision=_mean(one["precision"] for one in data),
        judge=_mean((row.get("judge") or {}).get("accuracy") for row in rows),
        coverage=_mean(one["coverage"] for one in data),
        duplicate_share=_mean(one["duplicate_share"] for one in data),
        seed_distance=_mean(one["seed_distance"] for one in data),
        rows=_mean(one["rows"] for one in data),
        tokens=_mean(spent),
        flips=_flips(rows),
        seconds=statistics.mean(row["seconds"] for row in rows),
        earlier=any(row.get("earlier", False) for row in rows),
    )


def _gap(found: dict[int, Record], floor: dict[int, Record], ceiling: dict[int, Record]) -> float | None:
    common = found.keys() & floor.keys() & ceiling.keys()
    if not common:
        return None
    means = [statistics.mean(group[draw]["accuracy"] for draw in common) for group in (found, floor, ceiling)]
    return gap_closed(*means)


def _flips(rows: Sequence[Record]) -> tuple[float, ...]:
    """Mean flip rate of round 1, 2, ... over the draws that have it."""
    by_round: dict[int, list[float]] = {}
    for row in rows:
        for one in row.get("rounds", ()):
            if one["flip_rate"] is not None:
                by_round.setdefault(one["round"], []).append(one["flip_rate"])
    return tuple(statistics.mean(by_round[number]) for number in sorted(by_round))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def ablation(records: Iterable[Record]) -> list[Difference]:
    """What each variant loses against the whole, by task and over all tasks ("all"), paired by task and draw."""
    whole: dict[tuple[str, int], float] = {}
    variants: dict[str, dict[tuple[str, int], float]] = {}
    for record in records:
        place = (record["task"], record["draw"])
        (variants.setdefault(record["variant"], {}) if record["variant"] else whole)[place] = record["accuracy"]
    lines = []
    for variant, found in variants.items():
        lost = {place: whole[place] - value for place, value in found.items() if place in whole}
        for task in [*dict.fromkeys(place[0] for place in lost), "all"]:
            values = [value for place, value in lost.items() if task in ("all", place[0])]
            if values:
                lines.append(Difference(variant, task, len(values), statistics.mean(values), standard_error(values)))
    return lines


def standard_error(values: Sequence[float]) -> float | None:
    """Standard deviation of the mean; None for fewer than two values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None

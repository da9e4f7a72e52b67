"""Numbers over draws: means, spread, gap closed, and paired differences with their standard error."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.quality.methods import METHODS

Record = dict[str, Any]
FLOOR, CEILING = "seeds-only", "gold"


@dataclass(frozen=True)
class Basis:
    """What a number rests on.

    Attributes:
        earlier: some of it was made with other code than today's.
        mixed: it sets fits of different precision against each other (float32, bfloat16).
    """

    draws: int
    earlier: bool
    mixed: bool


@dataclass(frozen=True)
class Line:
    """A method on a task, over its draws. Shares are in 0..1; None where there is nothing to compute from.

    Attributes:
        sd: standard deviation over draws; None for one.
        lift, lift_error: mean difference to seeds-only, paired by draw, and its standard error (None for one draw).
        judge: accuracy of the judge of `precision` on the test set.
        own, paired, spanned: what its own numbers, those against seeds-only, and `gap` rest on.
        by_draw: accuracy in each draw.
        gap: gap closed: (method - seeds-only) / (gold - seeds-only), of means over the draws that all three have.
        worst: smallest difference to seeds-only in one draw.
    """

    task: str
    method: str
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
    own: Basis
    paired: Basis
    spanned: Basis
    by_draw: Mapping[int, float]


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences (default - variant) and its standard error (None for a single pair).

    Attributes:
        earlier: some of it was made with other code than today's.
    """

    variant: str
    task: str
    pairs: int
    mean: float
    error: float | None
    earlier: bool = False


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
        own=_basis(found),
        paired=_basis(found, floor),
        spanned=_basis(found, floor, ceiling),
        by_draw={draw: found[draw]["accuracy"] for draw in sorted(found)},
    )


def _basis(*groups: dict[int, Record]) -> Basis:
    """Of a number over the draws that all groups have."""
    common = set.intersection(*(set(group) for group in groups))
    together = [[group[draw] for group in groups] for draw in common]
    return Basis(
        draws=len(common),
        earlier=any(row.get("earlier", False) for rows in together for row in rows),
        mixed=any(len({precision for row in rows if (precision := _precision(row))}) > 1 for rows in together),
    )


def _precision(record: Record) -> str:
    """What a fit was computed in; "" for a method that fits no adapter."""
    method = METHODS[record["method"]]
    return str(record["engine"][-1]) if (method.trains or method.loop) and "engine" in record else ""


def paired_difference(one: Line, other: Line) -> float | None:
    """Mean difference of two methods over the draws that both have; None without any."""
    return _mean(one.by_draw[draw] - other.by_draw[draw] for draw in one.by_draw.keys() & other.by_draw.keys())


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
    whole: dict[tuple[str, int], Record] = {}
    variants: dict[str, dict[tuple[str, int], Record]] = {}
    for record in records:
        place = (record["task"], record["draw"])
        (variants.setdefault(record["variant"], {}) if record["variant"] else whole)[place] = record
    lines = []
    for variant, found in variants.items():
        pairs = {place: (whole[place], record) for place, record in found.items() if place in whole}
        for task in [*dict.fromkeys(place[0] for place in pairs), "all"]:
            chosen = [pair for place, pair in pairs.items() if task in ("all", place[0])]
            if chosen:
                lost = [one["accuracy"] - other["accuracy"] for one, other in chosen]
                earlier = any(record.get("earlier", False) for pair in chosen for record in pair)
                mean = statistics.mean(lost)
                lines.append(Difference(variant, task, len(lost), mean, standard_error(lost), earlier))
    return lines


def standard_error(values: Sequence[float]) -> float | None:
    """Standard deviation of the mean; None for fewer than two values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None

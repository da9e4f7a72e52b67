"""What the project wants of the default preset, beside what was measured.

The tasks are those it set itself goals on; nothing outside this module and the documents knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from benchmarks.quality.methods import METHODS
from benchmarks.quality.summary import Line

TASKS = ("trec", "sst2", "banking77")
GOALS_HEAD = ("goal", "task", "target", "measured", "draws", "")
EARLIER = "†"
"""Marks what was made with other code than today's."""


@dataclass(frozen=True)
class Goal:
    """One number that a method is to reach on a task.

    Attributes:
        measure: takes it from the method's line; None where that does not have it.
        bound: in the unit of the measure; the least that will do, or the most where `most`.
        form: format of bound and measure.
    """

    what: str
    task: str
    method: str
    measure: Callable[[Line], float | None]
    bound: float
    form: str
    most: bool = False

    def row(self, lines: Sequence[Line]) -> list[str]:
        """A row of the table."""
        line = next((one for one in lines if (one.task, one.method) == (self.task, self.method)), None)
        value = None if line is None else self.measure(line)
        target = f"{'≤' if self.most else '≥'} {self.form.format(self.bound)}"
        if line is None or value is None:
            return [self.what, self.task, target, "", "0", "not measured"]
        met = value <= self.bound if self.most else value >= self.bound
        mark = EARLIER if line.earlier else ""
        return [self.what, self.task, target, self.form.format(value) + mark, str(line.draws), _verdict(met)]


def goals_table_rows(lines: Sequence[Line]) -> Iterator[list[str]]:
    """Every goal in the order in which they are told: what, task, target, measured, draws, met or missed."""
    for goal in _goals():
        yield goal.row(lines)
    for task in TASKS:
        yield _better(lines, "paper", [task])
    yield _better(lines, "setfit", TASKS)


def _goals() -> Iterator[Goal]:
    def gap(line: Line) -> float | None:
        return line.gap

    def points(line: Line) -> float | None:
        return None if line.worst is None else 100 * line.worst

    for task, alone, beside in (("trec", 0.8, 0.95), ("sst2", 0.5, 0.95), ("banking77", 0.5, 0.75)):
        yield Goal("gap closed", task, "default", gap, alone, "{:.0%}")
        yield Goal("gap closed with real texts", task, "unlabeled", gap, beside, "{:.0%}")
    for task in TASKS:
        yield Goal("worst draw, points over seeds only", task, "default", points, -1.0, "{:+.1f}")
    for task, share in (("trec", 0.95), ("sst2", 0.95), ("banking77", 0.9)):
        yield Goal("rows with the right label", task, "default", lambda line: line.precision, share, "{:.1%}")
    for task in TASKS:
        yield Goal("calibration error", task, "default", lambda line: line.ece, 0.05, "{:.3f}", most=True)
    yield Goal(
        "seconds of one core (30 minutes of two)",
        "trec",
        "default",
        lambda line: line.seconds,
        3600,
        "{:,.0f}",
        most=True,
    )


def _better(lines: Sequence[Line], other: str, tasks: Sequence[str]) -> list[str]:
    """Points that the default is ahead of another method, mean over tasks, on the means of their draws."""
    found = {(line.task, line.method): line for line in lines}
    pairs = [(found.get((task, "default")), found.get((task, other))) for task in tasks]
    known = [(one, two) for one, two in pairs if one is not None and two is not None]
    head = [f"points over {METHODS[other].title}", "all" if len(tasks) > 1 else tasks[0], "> 0"]
    if len(known) < len(tasks):
        return [*head, "", "0", "not measured"]
    ahead = 100 * mean(one.accuracy - two.accuracy for one, two in known)
    mark = EARLIER if any(line.earlier for pair in known for line in pair) else ""
    draws = min(line.draws for pair in known for line in pair)
    return [*head, f"{ahead:+.1f}{mark}", str(draws), _verdict(ahead > 0)]


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"

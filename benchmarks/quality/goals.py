"""What the project wants of the default preset, beside what was measured.

The tasks are those it set itself goals on; nothing outside this module and the documents knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from benchmarks.quality.methods import METHODS
from benchmarks.quality.summary import Basis, Line, paired_difference

TASKS = ("trec", "sst2", "banking77")
GOALS_HEAD = ("goal", "task", "target", "measured", "draws", "")
EARLIER, MIXED = "†", "‡"
DIGITS = 9  # of a share: 0.882 - 0.892 is a loss of one point, not of a little more


@dataclass(frozen=True)
class Found:
    """A measured number, what it rests on, and the accuracy of the judge that gave it, where one did."""

    value: float | None
    basis: Basis
    judge: float | None = None


@dataclass(frozen=True)
class Goal:
    """One number that a method is to reach on a task.

    Attributes:
        measure: takes it from the method's line.
        bound: in the unit of the measure; the least that will do, or the most where `most`.
        form: format of bound and measure.
    """

    what: str
    task: str
    method: str
    measure: Callable[[Line], Found]
    bound: float
    form: str
    most: bool = False

    def row(self, lines: Sequence[Line]) -> list[str]:
        """A row of the table."""
        line = next((one for one in lines if (one.task, one.method) == (self.task, self.method)), None)
        found = None if line is None else self.measure(line)
        target = f"{'≤' if self.most else '≥'} {self.form.format(self.bound)}"
        if found is None or found.value is None:
            return [self.what, self.task, target, "", "0", "not measured"]
        value = round(found.value, DIGITS)
        met = value <= self.bound if self.most else value >= self.bound
        verdict = _verdict(met)
        if (
            found.judge is not None and found.judge < self.bound
        ):  # wrong more often than the rows may be: it tells nothing
            verdict = f"the judge has {found.judge:.1%} right"
        shown = self.form.format(value) + marks(found.basis)
        return [self.what, self.task, target, shown, str(found.basis.draws), verdict]


def goals_rows(lines: Sequence[Line]) -> Iterator[list[str]]:
    """Every goal in the order in which they are told: what, task, target, measured, draws, met or missed."""
    for goal in _goals():
        yield goal.row(lines)
    for task in TASKS:
        yield _better(lines, "paper", [task])
    yield _better(lines, "setfit", TASKS)


def marks(basis: Basis) -> str:
    """What a reader has to know of a number."""
    return (EARLIER if basis.earlier else "") + (MIXED if basis.mixed else "")


def _goals() -> Iterator[Goal]:
    for task, alone, beside in (("trec", 0.8, 0.95), ("sst2", 0.5, 0.95), ("banking77", 0.5, 0.75)):
        yield Goal("gap closed", task, "default", _gap, alone, "{:.0%}")
        yield Goal("gap closed with real texts", task, "unlabeled", _gap, beside, "{:.0%}")
    for task in TASKS:
        yield Goal("worst draw, points over seeds only", task, "default", _worst, -1.0, "{:+.1f}")
    for task, share in (("trec", 0.95), ("sst2", 0.95), ("banking77", 0.9)):
        yield Goal("rows with the right label", task, "default", _precision, share, "{:.1%}")
    for task in TASKS:
        yield Goal("calibration error", task, "default", lambda one: Found(one.ece, one.own), 0.05, "{:.3f}", most=True)
    yield Goal("seconds", "trec", "default", lambda one: Found(one.seconds, one.own), 1800, "{:,.0f}", most=True)


def _gap(line: Line) -> Found:
    return Found(line.gap, line.spanned)


def _worst(line: Line) -> Found:
    return Found(None if line.worst is None else 100 * line.worst, line.paired)


def _precision(line: Line) -> Found:
    return Found(line.precision, line.own, line.judge)


def _better(lines: Sequence[Line], other: str, tasks: Sequence[str]) -> list[str]:
    """Points that the default is ahead of another method, paired by draw, mean over tasks."""
    found = {(line.task, line.method): line for line in lines}
    pairs = [(found.get((task, "default")), found.get((task, other))) for task in tasks]
    known = [(one, two) for one, two in pairs if one is not None and two is not None]
    ahead = [paired_difference(one, two) for one, two in known]
    values = [value for value in ahead if value is not None]
    head = [f"points over {METHODS[other].title}", "all" if len(tasks) > 1 else tasks[0], "> 0"]
    if len(values) < len(tasks):
        return [*head, "", "0", "not measured"]
    points = round(100 * mean(values), DIGITS)
    basis = Basis(
        draws=min(len(one.by_draw.keys() & two.by_draw.keys()) for one, two in known),
        earlier=any(line.own.earlier for pair in known for line in pair),
        mixed=False,
    )
    return [*head, f"{points:+.1f}{marks(basis)}", str(basis.draws), _verdict(points > 0)]


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"

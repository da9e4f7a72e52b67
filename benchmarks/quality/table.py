"""Tables as Markdown, for the terminal and for docs/quality.md, where they stand between markers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from afdc.errors import UsageError
from afdc.files import write_bytes
from benchmarks.quality.goals import EARLIER, GOALS_HEAD, MIXED, goals_rows, marks
from benchmarks.quality.methods import METHODS
from benchmarks.quality.summary import FLOOR, Difference, Line

HEAD = ("method", "accuracy", "macro-F1", "over seeds only", "worst draw", "gap closed", "ECE (raw)", "seconds")
DATA_HEAD = ("method", "rows", "precision", "judge", "coverage", "duplicates", "seed distance", "flips", "tokens")

LEGEND = {
    EARLIER: "made by an earlier version of the code",
    MIXED: "a fit in float32 beside one in bfloat16",
}


def results_table(lines: Sequence[Line]) -> str:
    """Two tables a task: what the methods reach, and what is in the data sets of those that make one."""
    parts = []
    for task in dict.fromkeys(line.task for line in lines):
        own = [line for line in lines if line.task == task]
        draws = max(line.own.draws for line in own)
        parts.append(f"**{task}**, {_draws(draws)}\n\n{markdown(HEAD, [_result(line, draws) for line in own])}")
        made = [_data(line, draws) for line in own if line.rows is not None]
        if made:
            parts.append(markdown(DATA_HEAD, made))
    return with_legend("\n\n".join(parts))


def goals_table(lines: Sequence[Line]) -> str:
    """A line a goal: the target, what was measured, over how many draws, and whether it is met."""
    return with_legend(markdown(GOALS_HEAD, goals_rows(lines)))


def ablation_table(differences: Sequence[Difference]) -> str:
    """A line a switch: accuracy that the default loses without it, in points, with its standard error."""
    tasks = list(dict.fromkeys(one.task for one in differences))
    tasks = [*(task for task in tasks if task != "all"), "all"]
    rows = []
    for variant in dict.fromkeys(one.variant for one in differences):
        cells = {one.task: _signed(one.mean, one.error) for one in differences if one.variant == variant}
        earlier = any(one.earlier for one in differences if one.variant == variant)
        rows.append([variant + EARLIER * earlier, *(cells.get(task, "") for task in tasks)])
    return with_legend(markdown(("without", *tasks), rows))


def with_legend(text: str) -> str:
    """The text, and below it what its marks mean."""
    legend = [f"{mark} {meaning}" for mark, meaning in LEGEND.items() if mark in text]
    return "\n\n".join([text, "; ".join(legend) + "."]) if legend else text


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with columns of even width."""
    table = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in table
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def replace_between(path: Path, tables: Mapping[str, str]) -> None:
    """Put each text between `<!-- begin: NAME -->` and `<!-- end: NAME -->` of a file.

    Raises:
        UsageError: the file lacks markers; nothing is written.
    """
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        head, found, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not (found and closed):
            raise UsageError(f"{path} has no {begin} ... {end}", remedy="Put both lines where the table belongs")
        text = f"{head}{begin}\n{table}\n{end}{tail}"
    write_bytes(path, text.encode())


def _result(line: Line, draws: int) -> list[str]:
    raw = f" ({line.ece_raw:.3f})" if line.ece_raw is not None else ""
    mixed = MIXED if line.paired.mixed else ""
    spread = f" ± {100 * line.sd:.1f}" if line.sd is not None else ""
    return [
        _title(line, draws),
        f"{100 * line.accuracy:.1f}{spread}",
        f"{100 * line.macro_f1:.1f}",
        "" if line.method == FLOOR or line.lift is None else _signed(line.lift, line.lift_error) + mixed,
        "" if line.method == FLOOR or line.worst is None else _signed(line.worst),
        _number(line.gap, "{:.0%}"),
        _number(line.ece, "{:.3f}") + raw,
        f"{line.seconds:.0f}",
    ]


def _data(line: Line, draws: int) -> list[str]:
    return [
        _title(line, draws),
        _number(line.rows, "{:.0f}"),
        _number(line.precision, "{:.1%}"),
        _number(line.judge, "{:.1%}"),
        _number(line.coverage, "{:.0%}"),
        _number(line.duplicate_share, "{:.1%}"),
        _number(line.seed_distance, "{:.2f}"),
        " ".join(f"{flip:.1%}" for flip in line.flips),
        _number(line.tokens, "{:,.0f}"),
    ]


def _title(line: Line, draws: int) -> str:
    """The method, and its number of draws where others of the task have more."""
    fewer = f", {_draws(line.own.draws)}" if line.own.draws < draws else ""
    return METHODS[line.method].title + fewer + marks(line.own)


def _draws(count: int) -> str:
    return f"{count} draw{'s' if count > 1 else ''}"


def _signed(share: float, error: float | None = None) -> str:
    """A difference in points, with its standard error where there is one."""
    return f"{100 * share:+.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)

"""From what a client sent to checked rows: every line by itself, then all lines together.

With `on_invalid="reject"` one fault refuses the set; with "skip" the faulty rows fall out and are told. Either way the
report lists faults with their lines, and nothing is stored half. Examples with labels are few and are held in memory;
texts without labels may be millions and pass through a file.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afdc.errors import InputError
from afdc.inputs import ExampleReader, ReadExample, check_text
from afdc.records import Problem, Record
from afdc.seeds import infer_task
from afdc.task import Task, text_id, text_key
from afdc.wire.seeds import MAX_LISTED_ERRORS, LineError, OnInvalid, SeedKind, SeedReport
from afdc_server.service.errors import TooLargeError

NO_EXAMPLES = "there are no examples that can be used"
INVALID, CONTRADICTION, EMPTY, TASK = "invalid_example", "contradiction", "no_examples", "invalid_task"


@dataclass(frozen=True, slots=True)
class SeedRow:
    """A row to store. `label` is None in a set without labels."""

    id: str
    text: str
    label: str | None
    holdout: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id, "text": self.text, "label": self.label, "holdout": self.holdout}

    def to_line(self) -> bytes:
        """As a line of a file."""
        return json.dumps(self.to_dict(), ensure_ascii=False).encode() + b"\n"


@dataclass
class Intake:
    """What was found. `rows` may be stored when the report is valid, and can be gone through more than once."""

    task: Task | None
    rows: Iterable[SeedRow]
    report: SeedReport


@dataclass
class _Findings:
    """Faults and counts, as they come."""

    errors: list[LineError] = field(default_factory=list)
    skipped: int = 0
    duplicates: int = 0
    contradictions: int = 0

    def fault(self, line: int | None, message: str, code: str = INVALID) -> None:
        self.skipped += 1
        if len(self.errors) < MAX_LISTED_ERRORS:
            self.errors.append(LineError(line=line, code=code, message=message))


def records_of(examples: Iterable[dict[str, Any]]) -> Iterator[Record]:
    """JSON objects as the lines of a file."""
    for number, fields in enumerate(examples, 1):
        yield Record(number, fields)


def check_wording(task: Task) -> Task:
    """The task, if its instruction, labels and descriptions can stand in a prompt and a table.

    Raises:
        InputError: NUL, a line break in a label, too long; says in which.
    """
    check_text(task.instruction, "the task's instruction")
    reader = ExampleReader("", None, require_label=True)
    for number, label in enumerate(task.classes):
        found = reader.read(Record(number, {"text": "-", "label": label.name}))
        if isinstance(found, Problem):
            raise InputError(f"labels[{number}] of the task: {found.message}", remedy=found.remedy)
        if label.description.strip():
            check_text(label.description, f"the description of labels[{number}] of the task")
    return task


def take_in(
    records: Iterable[Record | Problem],
    holdout: Iterable[Record | Problem],
    *,
    task: Task | None,
    kind: SeedKind,
    on_invalid: OnInvalid,
    max_rows: int,
) -> Intake:
    """Check everything that can be checked without a model.

    Args:
        holdout: gold rows beside the seeds.
        task: None: inferred from the labels.
        max_rows: more raise TooLargeError.
    """
    found = _Findings()
    labelled = kind != "unlabeled"
    examples = list(_read(records, task if labelled else None, labelled, found, max_rows))
    gold = list(_read(holdout, task, True, found, max_rows))
    if labelled and task is None and examples:
        task = _infer([*examples, *gold], found)
    rows = _distinct([(one, False) for one in examples] + [(one, True) for one in gold], found)
    if not any(not row.holdout for row in rows):
        found.fault(None, NO_EXAMPLES, EMPTY)
    if kind == "seeds" and task is not None:
        _check_every_label(rows, task, found)
    seeds = Counter(row.label for row in rows if not row.holdout)
    report = _report(seeds, len(rows) - seeds.total(), task, found, on_invalid)
    return Intake(task if labelled else None, rows, report)


class SpooledRows:
    """Rows in a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[SeedRow]:
        with self._path.open("rb") as stream:
            for line in stream:
                yield SeedRow(**json.loads(line))


def take_in_texts(records: Iterable[Record | Problem], spool: Path, *, on_invalid: OnInvalid, max_rows: int) -> Intake:
    """`take_in` for texts without labels, with one of them in memory at a time.

    Args:
        spool: file for the rows; it must last as long as they are wanted.
    """
    found = _Findings()
    count = 0
    with spool.open("wb") as stream, closing(sqlite3.connect("")) as seen:  # "": a database in a file of its own
        seen.execute("CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID")
        for example in _read(records, None, False, found, max_rows):
            key = hashlib.sha256(text_key(example.text).encode()).digest()[:16]
            if not seen.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount:
                found.duplicates += 1
                continue
            stream.write(SeedRow(text_id("s_", example.text, ""), example.text, None).to_line())
            count += 1
    if not count:
        found.fault(None, NO_EXAMPLES, EMPTY)
    return Intake(None, SpooledRows(spool), _report(Counter({None: count}), 0, None, found, on_invalid))


def _read(
    items: Iterable[Record | Problem], task: Task | None, labelled: bool, found: _Findings, max_rows: int
) -> Iterator[ReadExample]:
    reader = ExampleReader("", task, labelled)
    for count, item in enumerate(items, 1):
        if count > max_rows:
            raise TooLargeError(f"more than {max_rows:,} examples", remedy="Split them into several sets")
        if isinstance(item, Record) and not labelled and "text" in item.fields:
            item = Record(item.line, {"text": item.fields["text"]})  # unlabelled texts often come out of a table
        example = item if isinstance(item, Problem) else reader.read(item)
        if isinstance(example, Problem):
            found.fault(example.line, f"{example.message}. {example.remedy}".strip(" ."))
        else:
            yield example


def _infer(examples: list[ReadExample], found: _Findings) -> Task | None:
    try:
        return infer_task(examples)
    except InputError as exc:
        found.fault(exc.line, str(exc), TASK)
        return None


def _distinct(examples: list[tuple[ReadExample, bool]], found: _Findings) -> list[SeedRow]:
    """One row a text; texts with two labels, and held-out texts that are seeds too, are faults."""
    first: dict[str, SeedRow] = {}
    lines: dict[str, int | None] = {}
    bad: set[str] = set()
    for example, is_gold in examples:
        key = text_key(example.text)
        row = SeedRow(text_id("s_", example.text, example.label or ""), example.text, example.label, is_gold)
        other = first.setdefault(key, row)
        lines.setdefault(key, example.line)
        if other is row:
            continue
        if (other.label, other.holdout) == (row.label, row.holdout):
            found.duplicates += 1
        elif key not in bad:
            bad.add(key)
            found.contradictions += 1
            found.fault(example.line, _contradiction(other, row, lines[key]), CONTRADICTION)
    return [row for key, row in first.items() if key not in bad]


def _contradiction(first: SeedRow, second: SeedRow, line: int | None) -> str:
    shown = second.text[:60]
    if first.label == second.label:
        return f"{shown!r} is a seed (line {line}) and held out, too: keep it in one of the two"
    return f"{shown!r} has label {second.label!r} here and {first.label!r} on line {line}: keep the right one"


def _check_every_label(rows: list[SeedRow], task: Task, found: _Findings) -> None:
    have = {row.label for row in rows if not row.holdout}
    missing = [name for name in task.names if name not in have]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        found.fault(None, f"{len(missing)} of {len(task.names)} labels have no seed: {shown}", TASK)


def _report(
    counts: Counter[str | None], holdout: int, task: Task | None, found: _Findings, on_invalid: OnInvalid
) -> SeedReport:
    fatal = [error for error in found.errors if on_invalid == "reject" or error.code in {EMPTY, TASK}]
    return SeedReport(
        rows=counts.total(),
        holdout_rows=holdout,
        per_label={name: counts[name] for name in task.names} if task else {},
        duplicates=found.duplicates,
        contradictions=found.contradictions,
        skipped=found.skipped,
        errors=found.errors,
        valid=not fatal,
    )

"""The user's files as checked values: examples, unlabelled texts and the task.

Every fault is an InputError with file, line and remedy; up to 20 faults of a file are told together, in order.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

from pydantic import Field, ValidationError

from afdc.errors import InputError
from afdc.labels import label_index
from afdc.records import (
    AS_CSV,
    AS_OBJECTS,
    MAX_TEXT_CHARS,
    Problem,
    Record,
    read_json,
    read_records,
    text_records,
    type_name,
)
from afdc.task import MAX_LABELS, Example, Label, Task, first_fault, normalise_text

MAX_PROBLEMS = 20
IN_QUOTES = "Write it in quotes"
TASK_FAULTS = {
    "tuple_type": "must be a list of labels, or null for answers in free text",
    "model_type": "must be a name in quotes or an object",
    "model_attributes_type": "must be a name in quotes or an object",
    "too_long": f"at most {MAX_LABELS:,} labels are allowed",
    "string_type": "must be a text in quotes",
    "string_too_short": "must not be empty",
    "extra_forbidden": "is not a key that a task has",
}
KNOWN_KEYS = ("id", "text", "label")
AS_TASK = (
    'Write {"instruction": "...", "labels": ["name", {"name": "...", "description": "..."}]}, '
    'or "labels": null for answers in free text'
)


class ReadExample(Example):
    """An example that knows where it came from, so that later checks can name the line."""

    path: str = Field(default="", exclude=True)
    line: int | None = Field(default=None, exclude=True)


def read_examples(path: Path, task: Task | None = None, *, require_label: bool = True) -> list[ReadExample]:
    """Read a whole JSONL or CSV file of examples.

    Args:
        path: UTF-8, with or without a byte order mark; blank lines are skipped.
        task: when given, every label must be one of its labels; a label that differs only in letter case or in Unicode
            form (and names exactly one) is read as that label.
        require_label: an example without a label is an error.

    Raises:
        InputError: anything that cannot be used, the first 20 faults together.
    """
    check = ExampleReader(str(path), task, require_label)
    examples: list[ReadExample] = []
    problems: list[Problem] = []
    for item in read_records(path):
        example = item if isinstance(item, Problem) else check.read(item)
        if isinstance(example, Problem):
            problems.append(example)
        else:
            examples.append(example)
        if len(problems) == MAX_PROBLEMS:
            break
    if problems:
        _raise_all(path, problems)
    if not examples:
        remedy = AS_CSV if path.suffix.lower() == ".csv" else AS_OBJECTS
        raise InputError("the file holds no examples", path=str(path), remedy=remedy)
    return examples


def iter_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Stream (1-based line, text) from JSONL or CSV with a `text` field, or from plain text with one text a line.

    Other fields are ignored: unlabelled data often comes out of a table that has them.

    Raises:
        InputError: at the first fault, or at the end of a file without texts.
    """
    yield from _checked_texts(read_records(path, plain_text=True), path)


def iter_stream(stream: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """As `iter_texts`, from an open stream with one text a line; `name` stands for it in messages."""
    yield from _checked_texts(text_records(stream), Path(name))


def check_text(text: str, name: str) -> str:
    """One text in its normal form; `name` says in messages where it comes from.

    Raises:
        InputError: not UTF-8, empty, too long, or with a character that no text has.
    """
    flaw = _flaw(text)
    if flaw:
        raise InputError(f"the text {flaw}", path=name, remedy="Correct the text or leave it out")
    return normalise_text(text)


def _checked_texts(items: Iterable[Record | Problem], path: Path) -> Iterator[tuple[int, str]]:
    empty = True
    for item in items:
        problem = item if isinstance(item, Problem) else _text_problem(item)
        if problem is not None:
            _raise_all(path, [problem])
        if isinstance(item, Record):
            empty = False
            yield item.line, normalise_text(item.fields["text"])
    if empty:
        raise InputError("there are no texts", path=str(path), remedy="Put one text on each line")


def read_task(path: Path) -> Task:
    """Read a task from a JSON file. Label names come back in their normal form (NFC, no surrounding space).

    Raises:
        InputError: not UTF-8, broken JSON, unknown keys, fewer than two labels, a blank or repeated label, or
            a character that no text has.
    """
    data = read_json(path, AS_TASK)
    try:
        task = Task.model_validate(data)
    except ValidationError as exc:
        where, kind, found = first_fault(exc)
        message = TASK_FAULTS.get(kind, found)
        told = f"{where}: {message}" if where else message if isinstance(data, dict) else "not a JSON object"
        raise InputError(told, path=str(path), remedy=AS_TASK) from exc
    _check_wording(path, "the instruction", task.instruction)
    for label in task.classes:
        _check_wording(path, f"the description of {label.name[:40]!a}", label.description)
    if task.is_open:
        return task
    labels = tuple(Label(name=_label_name(path, label.name), description=label.description) for label in task.classes)
    return task.model_copy(update={"labels": labels})


class ExampleReader:
    """Turns records into examples; knows the file and the labels that may appear."""

    def __init__(self, path: str, task: Task | None, require_label: bool) -> None:
        self.path = path
        self.labels = label_index(task) if task else None
        self.require_label = require_label

    def read(self, record: Record) -> ReadExample | Problem:
        """The record as an example, or what is wrong with it."""
        fields = record.fields
        unknown = next((key for key in fields if key not in KNOWN_KEYS), None)
        if unknown is not None:
            return Problem(record.line, f"unknown key {unknown[:40]!a}", f"Use {', '.join(KNOWN_KEYS)} only")
        problem = _text_problem(record)
        if problem is not None:
            return problem
        label = self._label(record)
        if isinstance(label, Problem):
            return label
        name = "" if fields.get("id") is None else fields["id"]
        if isinstance(name, bool) or not isinstance(name, str | int):
            return Problem(record.line, f"id must be a string, and it is {type_name(name)}", IN_QUOTES)
        flaw = _flaw(str(name)) if name != "" else None
        if flaw:
            return Problem(record.line, f"the id {flaw}")
        text = normalise_text(fields["text"])
        return ReadExample(id=str(name), text=text, label=label, path=self.path, line=record.line)

    def _label(self, record: Record) -> str | Problem | None:
        value = record.fields.get("label")
        if value is None or (value == "" and not self.require_label):
            remedy = 'Add "label" to it'
            return Problem(record.line, "the example has no label", remedy) if self.require_label else None
        if not isinstance(value, str):
            return Problem(record.line, f"label must be a string, and it is {type_name(value)}", IN_QUOTES)
        name = normalise_text(value)
        flaw = _flaw(value) or (_name_flaw(name) if self.labels is None else None)
        if flaw:
            return Problem(record.line, f"the label {flaw}", "Correct the label")
        if self.labels is None:
            return name
        return self.labels.find(name) or Problem(record.line, *self.labels.unknown(name))


def _text_problem(record: Record) -> Problem | None:
    if "text" not in record.fields:
        return Problem(record.line, "the example has no text", 'Add "text" to it')
    value = record.fields["text"]
    if not isinstance(value, str):
        return Problem(record.line, f"text must be a string, and it is {type_name(value)}", IN_QUOTES)
    flaw = _flaw(value)
    return Problem(record.line, f"the text {flaw}", "Correct the text or take the line out") if flaw else None


def _flaw(value: str) -> str | None:
    """What makes a string unusable as text, or None. An id may be empty; texts and labels may not."""
    if len(value) > MAX_TEXT_CHARS:
        return f"has {len(value):,} characters, and {MAX_TEXT_CHARS:,} are allowed"
    if "\0" in value:
        return "holds a NUL character"
    if any("\ud800" <= char <= "\udfff" for char in value):
        return "holds half of a surrogate pair, which is no character"
    if all(unicodedata.category(char)[0] in "CZ" for char in value):
        return "is empty"
    return None


def _name_flaw(name: str) -> str | None:
    """What makes a string, usable as text, unusable as the name of a class; names stand in tables and on terminals."""
    found = next((char for char in name if unicodedata.category(char) in {"Cc", "Zl", "Zp"}), None)
    return None if found is None else f"holds a line break or a control character ({found!a})"


def _label_name(path: Path, name: str) -> str:
    flaw = _flaw(name) or _name_flaw(normalise_text(name))
    if flaw:
        raise InputError(f"a label {flaw}", path=str(path), remedy="Give each label a name")
    return normalise_text(name)


def _check_wording(path: Path, what: str, value: str) -> None:
    """The instruction and the descriptions enter every prompt; unlike a label they may be empty."""
    flaw = _flaw(value) if value.strip() else None
    if flaw:
        raise InputError(f"{what} {flaw}", path=str(path), remedy="Correct it or take it out")


def _raise_all(path: Path, problems: Sequence[Problem]) -> NoReturn:
    """One error for all faults: the first one leads and gives the remedy."""
    first = problems[0]
    others = "".join(f"\n  line {p.line}: {p.message}" for p in problems[1:])
    limit = f"\n  (stopped after {MAX_PROBLEMS} faults)" if len(problems) == MAX_PROBLEMS else ""
    raise InputError(first.message + others + limit, path=str(path), line=first.line, remedy=first.remedy)

"""The user's files as checked values: examples, unlabelled texts, the task, and what makes seeds usable.

Every fault is an InputError with file, line and remedy; up to 20 faults of a file are told together, in order.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pydantic import Field, ValidationError

from afdc.errors import InputError
from afdc.labels import LabelIndex, fold_name, list_names
from afdc.records import (
    AS_OBJECTS,
    MAX_TEXT_CHARS,
    Problem,
    Record,
    read_json,
    read_records,
    type_name,
)
from afdc.task import MAX_LABELS, Example, Label, Task, normalise_text, text_id

MAX_PROBLEMS = 20
KNOWN_KEYS = ("id", "text", "label")
AS_TASK = 'Write {"instruction": "...", "labels": ["name", {"name": "...", "description": "..."}]}'


class ReadExample(Example):
    """An example that knows where it came from, so that later checks can name the line."""

    path: str = Field(default="", exclude=True)
    line: int | None = Field(default=None, exclude=True)


@dataclass(frozen=True)
class SeedReport:
    """Seeds that passed every check.

    Attributes:
        examples: one per distinct text, in file order; `id` is `text_id("s_", text, label)`.
        counts: seeds of each label, in the order of the task's labels.
        duplicates: repeats (same text, same label) that were dropped.
    """

    examples: tuple[Example, ...]
    counts: dict[str, int]
    duplicates: int


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
    check = _ExampleReader(str(path), task, require_label)
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
        raise InputError("the file holds no examples", path=str(path), remedy=AS_OBJECTS)
    return examples


def iter_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Stream (1-based line, text) from JSONL or CSV with a `text` field, or from plain text with one text a line.

    Other fields are ignored: unlabelled data often comes out of a table that has them.

    Raises:
        InputError: at the first fault, or at the end of a file without texts.
    """
    empty = True
    for item in read_records(path, plain_text=True):
        problem = item if isinstance(item, Problem) else _text_problem(item)
        if problem is not None:
            _raise_all(path, [problem])
        if isinstance(item, Record):
            empty = False
            yield item.line, normalise_text(item.fields["text"])
    if empty:
        raise InputError("the file holds no texts", path=str(path), remedy="Put one text on each line")


def read_task(path: Path) -> Task:
    """Read a task from a JSON file. Label names come back in their normal form (NFC, no surrounding space).

    Raises:
        InputError: not UTF-8, broken JSON, unknown keys, fewer than two labels, or a blank or repeated label.
    """
    data = read_json(path, AS_TASK)
    try:
        task = Task.model_validate(data)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: {message}" if where else message, path=str(path), remedy=AS_TASK) from exc
    labels = tuple(Label(name=_label_name(path, label.name), description=label.description) for label in task.labels)
    return task.model_copy(update={"labels": labels})


def infer_task(examples: Sequence[Example]) -> Task:
    """A task whose labels are those of the examples, in the order in which they first appear.

    Raises:
        InputError: fewer than two labels, more than `MAX_LABELS`, or two that differ only in letter case.
    """
    first: dict[str, Example] = {}
    for example in examples:
        if example.label:
            first.setdefault(normalise_text(example.label), example)
    path, _ = _where(examples[0]) if examples else ("", None)
    if len(first) < 2:
        found = f"only one label: {next(iter(first))}" if first else "no label"
        raise InputError(f"the examples have {found}", path=path, remedy="Give examples of at least two labels")
    if len(first) > MAX_LABELS:
        message = f"the examples have {len(first):,} different labels, and {MAX_LABELS:,} are allowed"
        raise InputError(message, path=path, remedy='Check that "label" holds the class of the text')
    _check_spelling(first)
    return Task(labels=tuple(Label(name=name) for name in first))


def check_seeds(examples: Sequence[Example], task: Task) -> SeedReport:
    """Drop repeated seeds, refuse contradicting ones, and see that every label has at least one.

    Two texts are the same when they agree in NFC form up to white space. Letter case counts: a task may turn on it.

    Raises:
        InputError: no seeds, a seed without a label of the task, a text with two labels, or a label without a seed.
    """
    path, _ = _where(examples[0]) if examples else ("", None)
    if not examples:
        raise InputError("there are no seeds", remedy="Give at least one example of each label")
    labels = LabelIndex(task)
    seen: dict[str, Example] = {}
    cleaned: list[Example] = []
    for example in examples:
        label = _known_label(example, labels)
        key = " ".join(normalise_text(example.text).split())
        if key not in seen:
            seen[key] = example
            text = normalise_text(example.text)
            cleaned.append(Example(id=text_id("s_", text, label), text=text, label=label))
        elif _known_label(seen[key], labels) != label:
            raise _contradiction(seen[key], example)
    counts = Counter(example.label for example in cleaned)
    missing = [name for name in task.names if not counts[name]]
    if missing:
        message = f"{len(missing)} of {len(task.names)} labels have no seed: {list_names(missing)}"
        raise InputError(message, path=path, remedy="Add at least one example of each, or take it out of the task")
    by_label = {name: counts[name] for name in task.names}
    return SeedReport(tuple(cleaned), by_label, len(examples) - len(cleaned))


class _ExampleReader:
    """Turns records into examples; knows the file and the labels that may appear."""

    def __init__(self, path: str, task: Task | None, require_label: bool) -> None:
        self.path = path
        self.labels = LabelIndex(task) if task else None
        self.require_label = require_label

    def read(self, record: Record) -> ReadExample | Problem:
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
            return Problem(record.line, f"id must be a string, and it is {type_name(name)}")
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
            return Problem(record.line, f"label must be a string, and it is {type_name(value)}")
        flaw = _flaw(value)
        if flaw:
            return Problem(record.line, f"the label {flaw}")
        name = normalise_text(value)
        if self.labels is None:
            return name
        return self.labels.find(name) or Problem(record.line, *self.labels.unknown(name))


def _text_problem(record: Record) -> Problem | None:
    if "text" not in record.fields:
        return Problem(record.line, "the example has no text", 'Add "text" to it')
    value = record.fields["text"]
    if not isinstance(value, str):
        return Problem(record.line, f"text must be a string, and it is {type_name(value)}")
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


def _known_label(example: Example, labels: LabelIndex) -> str:
    path, line = _where(example)
    if example.label is None:
        raise InputError("the seed has no label", path=path, line=line, remedy="Add its label")
    label = labels.find(example.label)
    if label is None:
        message, remedy = labels.unknown(example.label)
        raise InputError(message, path=path, line=line, remedy=remedy)
    return label


def _contradiction(first: Example, second: Example) -> InputError:
    path, line = _where(second)
    earlier = _where(first)[1]
    place = f" on line {earlier}" if earlier is not None else ""
    message = f"the text has label {second.label!r} here and {first.label!r}{place}: {second.text[:60]!r}"
    return InputError(message, path=path, line=line, remedy="Keep the right line and take the other one out")


def _check_spelling(first: dict[str, Example]) -> None:
    folded: dict[str, str] = {}
    for name, example in first.items():
        other = folded.setdefault(fold_name(name), name)
        if other != name:
            path, line = _where(example)
            remedy = "Spell it one way, or name both in a task file (--task) if they are two labels"
            message = f"label {name!r} looks like {other!r} spelt another way"
            raise InputError(message, path=path, line=line, remedy=remedy)


def _where(example: Example) -> tuple[str, int | None]:
    return (example.path, example.line) if isinstance(example, ReadExample) else ("", None)


def _label_name(path: Path, name: str) -> str:
    flaw = _flaw(name)
    if flaw:
        raise InputError(f"a label {flaw}", path=str(path), remedy="Give each label a name")
    return normalise_text(name)


def _raise_all(path: Path, problems: Sequence[Problem]) -> NoReturn:
    """One error for all faults: the first one leads and gives the remedy."""
    first = problems[0]
    others = "".join(f"\n  line {p.line}: {p.message}" for p in problems[1:])
    limit = f"\n  (stopped after {MAX_PROBLEMS} faults)" if len(problems) == MAX_PROBLEMS else ""
    raise InputError(first.message + others + limit, path=str(path), line=first.line, remedy=first.remedy)

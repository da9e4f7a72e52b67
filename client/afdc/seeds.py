"""What makes examples usable as seeds and as gold: labels of the task, and one label (or answer) a text.

Two texts are the same when they agree in NFC form up to white space. Letter case counts: a task may turn on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from afdc.errors import InputError
from afdc.inputs import ReadExample
from afdc.labels import FreeAnswers, LabelIndex, fold_name, label_index, list_names
from afdc.task import MAX_LABELS, Example, Label, Task, normalise_text, text_id, text_key


@dataclass(frozen=True)
class SeedReport:
    """Seeds that passed every check.

    Attributes:
        examples: one per distinct text, in file order; `id` is `text_id("s_", text, label)`.
        counts: seeds of each label, in the order of the task's labels; empty for an open task.
        duplicates: repeats (same text, same label) that were dropped.
    """

    examples: tuple[Example, ...]
    counts: dict[str, int]
    duplicates: int


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

    Raises:
        InputError: no seeds, a seed without a label of the task, a text with two labels, or a label without a seed.
    """
    path, _ = _where(examples[0]) if examples else ("", None)
    if not examples:
        raise InputError("there are no seeds", remedy="Give at least one example of each label")
    labels = label_index(task)
    cleaned = [_clean_seed(example, labels) for example in first_of_each(examples, task)]
    counts = Counter(example.label for example in cleaned)
    missing = [name for name in task.names if not counts[name]]
    if missing:
        message = f"{len(missing)} of {len(task.names)} labels have no seed: {list_names(missing)}"
        raise InputError(message, path=path, remedy="Add at least one example of each, or take it out of the task")
    by_label = {name: counts[name] for name in task.names}
    return SeedReport(tuple(cleaned), by_label, len(examples) - len(cleaned))


def first_of_each(examples: Sequence[Example], task: Task) -> list[Example]:
    """The examples without repeats, in order.

    Raises:
        InputError: an example without a label of the task, or a text with two labels; names both lines.
    """
    labels = label_index(task)
    seen: dict[str, Example] = {}
    for example in examples:
        label = _known_label(example, labels)
        first = seen.setdefault(text_key(example.text), example)
        if _known_label(first, labels) != label:
            raise _contradiction(first, example)
    return list(seen.values())


def _clean_seed(example: Example, labels: LabelIndex | FreeAnswers) -> Example:
    text, label = normalise_text(example.text), _known_label(example, labels)
    return Example(id=text_id("s_", text, label), text=text, label=label)


def _known_label(example: Example, labels: LabelIndex | FreeAnswers) -> str:
    path, line = _where(example)
    if example.label is None:
        raise InputError("the example has no label", path=path, line=line, remedy="Add its label")
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

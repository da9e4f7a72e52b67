"""Labelled task folders, and what one draw of seeds takes from them.

A folder holds task.json, train.jsonl and test.jsonl with a text and a label a line.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from afdc.config import AugmentConfig
from afdc.errors import UsageError
from afdc.files import canonical_json, sha256_bytes, sha256_file
from afdc.inputs import read_examples, read_task
from afdc.task import Example, Task
from afdc_server.duplicates import SqliteDuplicateIndex

FILES = ("task.json", "train.jsonl", "test.jsonl")
TEST_SHUFFLE = 0


@dataclass(frozen=True)
class TaskFolder:
    """A task with its gold rows. `digest` changes with any of its files."""

    name: str
    task: Task
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    digest: str


@dataclass(frozen=True)
class DrawSpec:
    """What a draw takes: seeds a label, gold rows of the upper mark, unlabelled rows, test rows (0: all)."""

    shots: int = 8
    draw: int = 0
    gold: int = 600
    unlabeled: int = 2000
    test_limit: int = 0


@dataclass(frozen=True)
class Drawn:
    """Rows of one draw. `gold` begins with the seeds; `unlabeled` shares nothing with the seeds or the test rows."""

    seeds: tuple[Example, ...]
    gold: tuple[Example, ...]
    unlabeled: tuple[Example, ...]
    test: tuple[Example, ...]


def read_folder(path: Path) -> TaskFolder:
    """Read a task folder.

    Raises:
        InputError: a file is missing or broken.
        UsageError: the task has no labels.
    """
    task = read_task(path / "task.json")
    refuse_open(task)
    train, test = (tuple(read_examples(path / name, task)) for name in FILES[1:])
    digest = sha256_bytes(canonical_json([sha256_file(path / name) for name in FILES]))
    return TaskFolder(path.resolve().name, task, train, test, digest)


def refuse_open(task: Task | None) -> None:
    """Raises UsageError for a task without labels: the methods compared here all choose among labels."""
    if task is not None and task.is_open:
        raise UsageError("the task has no labels, and the methods compared here choose among labels")


def draw_rows(folder: TaskFolder, spec: DrawSpec) -> Drawn:
    """The rows of a draw: a shuffle of train seeded with its number, cut as the spec says."""
    order = shuffled(_first_of_each(folder.train), spec.draw)
    seeds = first_shots(order, spec.shots)
    taken = {row.text for row in seeds}
    rest = [row for row in order if row.text not in taken]
    test = shuffled(folder.test, TEST_SHUFFLE)[: spec.test_limit or None]
    test = without_repeats(test, seeds)
    return Drawn(
        seeds=tuple(seeds),
        gold=(*seeds, *rest[: max(0, spec.gold - len(seeds))]),
        unlabeled=tuple(without_repeats(rest, test)[: spec.unlabeled]),
        test=tuple(test),
    )


def shuffled(rows: Iterable[Example], seed: int) -> list[Example]:
    """The rows in an order that follows from the seed."""
    ordered = list(rows)
    random.Random(seed).shuffle(ordered)  # noqa: S311 # a seeded draw that protects nothing
    return ordered


def first_shots(rows: Sequence[Example], shots: int) -> list[Example]:
    """The first `shots` rows of each label, by label."""
    groups: dict[str, list[Example]] = {}
    for row in rows:
        group = groups.setdefault(row.label or "", [])
        if len(group) < shots:
            group.append(row)
    return [row for label in sorted(groups) for row in groups[label]]


def without_repeats(rows: Sequence[Example], known: Sequence[Example]) -> list[Example]:
    """Rows that repeat none of the known texts, exactly or nearly, by the product's own measure."""
    with TemporaryDirectory() as folder:
        index = SqliteDuplicateIndex(Path(folder) / "known.db", AugmentConfig().near_duplicate)
        for number, row in enumerate(known):
            index.add(str(number), row.text)
        kept = [row for row in rows if index.find(row.text) is None]
        index.close()
    return kept


def _first_of_each(rows: Sequence[Example]) -> list[Example]:
    """Without repeated texts, and without those whose repeats have different labels."""
    labels = Counter(text for text, _ in {(row.text, row.label) for row in rows})
    first = {row.text: row for row in reversed(rows) if labels[row.text] == 1}
    return list(reversed(first.values()))

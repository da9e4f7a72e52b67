"""Seeds shown in the prompt: a task whose instruction carries examples, for any engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

from afdc.task import Example, Task, normalise_text

ROOM = 256  # tokens kept free for the text, the label and the chat markup


def few_shot_task(task: Task, seeds: Sequence[Example], fits: Callable[[Task], bool]) -> tuple[Task, int]:
    """The task with as many examples as fit, labels in turn, and how many those are.

    Args:
        fits: whether a task's prompt is short enough.
    """
    ordered = list(in_turn(seeds))
    low, high = 0, len(ordered)
    while low < high:  # the largest number that fits: prompts only grow
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(_with_examples(task, ordered[:middle])) else (low, middle - 1)
    return _with_examples(task, ordered[:low]), low


def in_turn(seeds: Sequence[Example]) -> Iterator[Example]:
    """One seed of each label, then the next of each."""
    groups: dict[str, list[Example]] = {}
    for seed in seeds:
        groups.setdefault(seed.label or "", []).append(seed)
    for layer in zip_longest(*groups.values()):
        yield from (seed for seed in layer if seed is not None)


def _with_examples(task: Task, seeds: Sequence[Example]) -> Task:
    if not seeds:
        return task
    shown = "\n\n".join(f"{normalise_text(seed.text)}\n{seed.label}" for seed in seeds)
    return task.model_copy(update={"instruction": f"{normalise_text(task.instruction)} Examples:\n\n{shown}"})

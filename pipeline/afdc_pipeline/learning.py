"""Which rows the labellers of a round learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from afdc.config import RunConfig
from afdc.task import Task
from afdc.training import TrainRow
from afdc_pipeline.prompts import label_heading

MIN_SHARE = 1e-3  # of a soft target; the trainer asks for more


def learns_from_all(config: RunConfig, task: Task) -> bool:
    """Whether they learn from every scored row by its distribution, and not from those of D2 alone.

    What is left out of the data set as doubtful has a broad distribution: it teaches what looks like two labels, and
    that an adapter must not be sure of it.
    """
    if task.is_open or not config.select.soft_targets:
        return False
    return config.encoder.labeller if config.train.all_rows is None else config.train.all_rows


def soft_targets(distribution: Sequence[float]) -> dict[int, float]:
    """Label index -> probability, without those below MIN_SHARE: a row grows with its doubt, not with the label set."""
    least = min(MIN_SHARE, max(distribution))
    return {label: share for label, share in enumerate(distribution) if share >= least}


def name_rows(task: Task, repeat: int) -> Iterator[TrainRow]:
    """Each label's name as a gold row of that label, `repeat` times; none where the names tell nothing.

    A sentence encoder knows what a name means before it has seen one text: the nearest name is a zero-shot label (Yin
    et al. 2019, arXiv 1909.00161). docs/decisions/0017 says what that is worth, and what names that mean nothing cost.
    """
    if not telling_names(task):
        return
    for label, one in enumerate(task.classes):
        row = TrainRow(text=label_heading(one), targets={label: 1.0}, gold=True)
        yield from [row] * repeat


def telling_names(task: Task) -> bool:
    """Whether the label names, each with its description, are words: more than a letter each, and not one word with a
    number behind it ("LABEL_0", "LABEL_1"). One letter of a script beyond ASCII may be a word."""
    letters = ["".join(filter(str.isalpha, label_heading(one))).casefold() for one in task.classes]
    return len(set(letters)) == len(letters) and all(len(one) > 1 or not one.isascii() for one in letters)

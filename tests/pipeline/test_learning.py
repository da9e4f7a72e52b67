"""What labellers learn from beside the texts: the label names."""

from __future__ import annotations

import pytest

from afdc.task import Label, Task
from afdc_pipeline.learning import name_rows, telling_names


def of(*labels: str | Label) -> Task:
    return Task(instruction="Sort the texts.", labels=labels)


@pytest.mark.parametrize(
    ("labels", "telling"),
    [
        (("negative", "positive"), True),
        (("card arrival", "card_linking"), True),
        (("yes", "no"), True),
        (("好", "坏"), True),
        (("LABEL_0", "LABEL_1"), False),
        (("0", "1"), False),
        (("A", "B"), False),
        (("class 1", "Class 2", "other"), False),
        ((Label(name="0", description="bad news"), Label(name="1", description="good news")), True),
    ],
)
def test_names_that_are_no_words_tell_nothing(labels: tuple[str | Label, ...], telling: bool) -> None:
    task = of(*labels)
    assert telling_names(task) is telling
    assert len(list(name_rows(task, 2))) == (2 * len(labels) if telling else 0)


def test_a_name_is_a_gold_row_of_its_label_with_its_description() -> None:
    rows = list(name_rows(of("spam", Label(name="ham", description="wanted mail")), 3))
    assert [(row.text, row.targets, row.gold) for row in rows[::3]] == [
        ("spam", {0: 1.0}, True),
        ("ham (wanted mail)", {1: 1.0}, True),
    ]
    assert len(rows) == 6
    assert not list(name_rows(of("spam", "ham"), 0))

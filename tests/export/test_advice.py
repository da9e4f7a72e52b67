"""What a run tells its owner to do."""

from __future__ import annotations

from typing import Any

import pytest

from afdc.result import Evaluation, RoundResult
from afdc_server.export.advice import advise


def gold(right: int, loss: float, n: int = 400) -> Evaluation:
    return Evaluation(accuracy=right / n, n=n, log_loss=loss)


def round_of(number: int = 0, **more: Any) -> RoundResult:
    return RoundResult(round=number, candidates=10, selected=5, **more)


def test_an_encoder_that_tells_the_seeds_clearly_better_is_named() -> None:
    (told,) = advise([round_of(holdout=gold(240, 1.7), encoder=gold(268, 1.2))])
    assert "67.0%" in told
    assert "60.0%" in told
    assert "--unlabeled" in told


@pytest.mark.parametrize(
    ("adapters", "encoder"),
    [
        (gold(240, 1.7), gold(245, 1.2)),  # chance
        (gold(240, 1.2), gold(268, 1.7)),  # more right, and worse by the log loss
        (gold(268, 1.2), gold(240, 1.7)),
        (None, gold(268, 1.2)),
        (gold(240, 1.7), None),
    ],
)
def test_else_the_encoder_is_not(adapters: Evaluation | None, encoder: Evaluation | None) -> None:
    assert advise([round_of(holdout=adapters, encoder=encoder)]) == []


def test_only_round_0_compares_adapters_and_encoder() -> None:
    later = round_of(1, holdout=gold(240, 1.7), encoder=gold(380, 0.2))
    assert advise([round_of(holdout=gold(240, 1.2), encoder=gold(240, 1.3)), later]) == []


def test_labels_without_rows_are_named_as_of_the_last_round() -> None:
    counts = {f"label {i}": i // 7 for i in range(9)}  # seven of nine have none
    (told,) = advise([round_of(per_label=dict.fromkeys(counts, 0)), round_of(1, per_label=counts)])
    assert told.startswith("7 of 9 labels have no row but their seeds; give more seeds of them, or real texts")
    assert told.endswith("label 0, label 1, label 2, label 3, label 4, ...")


def test_a_long_name_is_cut() -> None:
    (told,) = advise([round_of(per_label={"x" * 500: 0})])
    assert len(told) < 200


def test_real_texts_are_not_asked_for_where_they_were_given() -> None:
    rounds = [round_of(holdout=gold(240, 1.7), encoder=gold(268, 1.2), per_label={"a": 0, "b": 3})]
    assert all("--unlabeled" in one for one in advise(rounds))
    assert not any("--unlabeled" in one for one in advise(rounds, unlabeled=True))


def test_nothing_is_said_of_a_run_without_rounds() -> None:
    assert advise([]) == []

"""When further augment rounds are drawn for a target, rule by rule."""

from __future__ import annotations

from typing import Any

import pytest

from afdc.config import RunConfig
from afdc.presets import build_config
from afdc.task import Task
from afdc_pipeline.growth import Standing, bound, describe, end_of_growth, rounds_needed, row_ceiling
from afdc_pipeline.stopping import Spent

TASK = Task(instruction="Sort the note.", labels=("ALPHA", "BETA", "GAMMA"))


def config(**sections: Any) -> RunConfig:
    return build_config("default", {"select": {"target_rows": 2000}}, sections)


def end(
    given: RunConfig | None = None, spent: Spent | None = None, ceiling: int | None = None, **standing: Any
) -> str | None:
    at = Standing(**{"selected": 400, "first": 400, "extra": 0, "drawn": 576, **standing})
    return end_of_growth(at, given or config(), spent or Spent(), ceiling)


def test_a_missed_target_asks_for_a_round() -> None:
    assert end() is None
    assert end(gained=12, extra=3) is None
    assert end(gained=-4, extra=3) is None, "the balance cap fell; the next round may add"


@pytest.mark.parametrize(
    ("standing", "reason"),
    [
        ({"selected": 2000}, "the target is reached"),
        ({"drawn": 0}, "nothing to draw"),
        ({"ceiling": 1999}, "allow 1999 rows"),
        ({"gained": 11}, "added 11 rows for 576 drawn texts"),
        ({"extra": 10}, "bound of 10 further rounds"),
    ],
)
def test_each_end_says_why(standing: dict[str, Any], reason: str) -> None:
    assert reason in str(end(**standing))


def test_the_user_who_wants_no_generated_text_gets_none() -> None:
    assert "nothing to draw" in str(end(config(augment={"rounds": 0})))


def test_half_of_a_budget_is_left_for_training() -> None:
    tokens, seconds = config(loop={"token_budget": 1000}), config(loop={"time_budget_s": 60})
    assert end(tokens, Spent(tokens=499)) is None
    assert "half of the token budget" in str(end(tokens, Spent(tokens=500)))
    assert end(seconds, Spent(seconds=29)) is None
    assert "half of the time budget" in str(end(seconds, Spent(seconds=30)))


def test_the_bound_follows_the_yield_of_the_plan() -> None:
    assert rounds_needed(2000, 1, 400) == 4
    assert rounds_needed(2000, 2, 3000) == 0
    assert rounds_needed(2000, 1, 0) == 0
    assert bound(2000, 1, 400) == 10
    assert bound(10_000, 1, 400) == 48
    assert bound(10_000, 1, 0) == 10


def test_caps_that_a_target_cannot_pass() -> None:
    assert row_ceiling(config().select, TASK, 12, unlabeled=False) is None
    both = config(select={"per_label": 50, "per_seed": 4}).select
    assert row_ceiling(both, TASK, 12, unlabeled=False) == 48
    assert row_ceiling(both, TASK, 12, unlabeled=True) == 150


def test_the_note_says_what_came_of_it() -> None:
    assert describe(40, 0, 40, 90, "why") == "target_rows: 40 of 90 rows, and no further augment round: why"
    assert describe(40, 1, 90, 90, "why") == "target_rows: 40 rows became 90 of 90 in 1 further augment round: why"
    assert "in 2 further augment rounds" in describe(40, 2, 90, 90, "why")

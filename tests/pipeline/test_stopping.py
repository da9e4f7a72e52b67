"""Each stopping rule alone, and their order."""

from __future__ import annotations

import numpy as np
import pytest

from afdc.presets import build_config
from afdc.result import Evaluation, RoundResult
from afdc_pipeline.stopping import Spent, flip_rate, stop_reason


def history(*accuracies: float | None, selected: int = 10, flips: float | None = None) -> list[RoundResult]:
    return [
        RoundResult(
            round=i,
            candidates=100,
            selected=selected,
            flip_rate=flips if i else None,
            holdout=None if value is None else Evaluation(accuracy=value, n=20),
        )
        for i, value in enumerate(accuracies)
    ]


def reason(past: list[RoundResult], spent: Spent | None = None, select: dict | None = None, **loop: object) -> str:
    config = build_config("default", {"loop": {"rounds": 10, **loop}, "select": select or {}})
    return (stop_reason(past, config, spent or Spent()) or "").partition(":")[0]


def test_t_rounds() -> None:
    assert reason([], rounds=0) == ""
    assert reason(history(None), rounds=0) == "rounds"
    assert reason(history(None, None), rounds=2) == ""
    assert reason(history(None, None, None), rounds=2) == "rounds"


def test_patience_counts_rounds_without_gain() -> None:
    assert reason(history(0.5, 0.6, 0.6), patience=2) == ""
    assert reason(history(0.5, 0.6, 0.6, 0.55), patience=2) == "no_gain"
    assert reason(history(0.5, 0.6, 0.55, 0.7), patience=2) == ""
    assert reason(history(0.5, 0.5), patience=1) == "no_gain"
    assert reason(history(None, None, None, None), patience=1) == ""


def test_target_rows_need_a_self_trained_selection() -> None:
    assert reason(history(None, selected=50), select={"target_rows": 50}) == ""
    assert reason(history(None, None, selected=49), select={"target_rows": 50}) == ""
    assert reason(history(None, None, selected=50), select={"target_rows": 50}) == "target_rows"


def test_flip_rate_below_epsilon() -> None:
    assert reason(history(None, None, flips=0.0), min_flip_rate=0) == ""
    assert reason(history(None, None, flips=0.09)) == "flip_rate"  # the default
    assert reason(history(None, None, flips=0.02), min_flip_rate=0.02) == ""
    assert reason(history(None, None, flips=0.019), min_flip_rate=0.02) == "flip_rate"
    assert reason(history(None), min_flip_rate=0.02) == ""


def test_budgets() -> None:
    assert reason(history(None), Spent(tokens=99), token_budget=100) == ""
    assert reason(history(None), Spent(tokens=100), token_budget=100) == "token_budget"
    assert reason(history(None), Spent(seconds=59.9), time_budget_s=60) == ""
    assert reason(history(None), Spent(seconds=60), time_budget_s=60) == "time_budget"
    assert reason(history(0.5, 0.5), Spent(tokens=100), token_budget=100, patience=1) == "no_gain"


def test_flip_rate_over_rows_scored_both_times() -> None:
    assert flip_rate(np.array([0, 1, 2, -1]), np.array([0, 2, -1, 1])) == 0.5
    assert flip_rate(np.array([-1]), np.array([0])) is None
    with pytest.raises(ValueError, match="2 and 1"):
        flip_rate(np.array([0, 1]), np.array([0]))

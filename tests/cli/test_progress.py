"""Live progress: bars on a terminal, plain lines elsewhere, and text from outside cannot act as markup."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from afdc.cli.output import duration, visible
from afdc.cli.progress import LiveProgress, StageCounter
from afdc.cli.summary import bar, print_evaluation, print_prediction
from afdc.result import EvalReport, LabelScore
from afdc_pipeline.seams import Progress, StageKey


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=100, highlight=False, markup=False), stream


def terminal() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=True, width=100, highlight=False, markup=False), stream


def test_plain_lines() -> None:
    console, stream = plain()
    clock = Clock()
    with LiveProgress(console, clock) as progress:
        seam: Progress = progress
        seam.stage(StageKey(1, "score"), "score candidates", 100)
        clock.now = 4.0
        seam.advance(50, kept=30, dropped=20)  # real work: time has passed
        clock.now = 20.0
        seam.advance(50, kept=40)
        seam.note("almost [bold]done[/]")
        seam.stage(StageKey(0, "train"), "train", None)
        seam.advance(0, step=9, steps=12, loss=0.1)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "- score candidates, round 1 (100)"
    assert lines[1].strip() == "score candidates, round 1: 100/100 · 5.0/s · kept 70 · dropped 20"
    assert lines[2].strip() == "almost [bold]done[/]"
    assert lines[3].startswith("✓ score candidates, round 1")
    assert lines[3].endswith("20.0 s  100/100 · 5.0/s · kept 70 · dropped 20")
    assert lines[5].startswith("✓ train")
    assert "9/12" in lines[5]
    assert "\x1b" not in stream.getvalue()


def test_terminal_shows_a_bar_and_collapses_to_one_line() -> None:
    console, stream = terminal()
    with LiveProgress(console) as progress:
        progress.stage(StageKey(0, "a"), "first [red]stage", 10)
        progress.advance(10)
    assert "first [red]stage" in stream.getvalue()
    assert "\x1b[?25h" in stream.getvalue(), "the cursor is shown again"
    assert "✓" in stream.getvalue()


def test_a_failed_stage_is_marked() -> None:
    console, stream = plain()
    progress = LiveProgress(console)
    progress.stage(StageKey(0, "a"), "stage", None)
    progress.__exit__(RuntimeError, RuntimeError(), None)
    assert "✗ stage" in stream.getvalue()


def test_resumed_work_does_not_count_as_speed() -> None:
    clock = Clock()
    counter = StageCounter("x", 1000, clock)
    counter.add(900, {})
    clock.now = 10.0
    counter.add(50, {"tokens": 4000})
    assert counter.details() == "950/1,000 · 5.0/s · 400 tokens/s"


@pytest.mark.parametrize(("seconds", "text"), [(2.34, "2.3 s"), (75.4, "1 min 15 s"), (7300, "2 h 1 min")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_bars_and_visible_text() -> None:
    assert bar(1.0, 4) == "████"
    assert bar(0.125, 4) == "▌"
    assert bar(float("nan")) == ""
    assert visible("a\x1b[31m\n b\u202e") == "a\ufffd[31m b\ufffd"
    assert visible("x" * 200, 10) == "xxxxxxxxx…"


def test_prediction_is_a_table_with_aligned_wide_characters() -> None:
    console, stream = plain()
    print_prediction(console, {"text": "a [b]", "probs": {"配送": 0.25, "billing": 0.75}})
    lines = stream.getvalue().splitlines()
    assert lines[0] == "a [b]"
    assert lines[1].startswith("  billing   75.0% █")
    assert lines[2].startswith("  配送      25.0% █")


def test_evaluation_table() -> None:
    console, stream = plain()
    label = LabelScore(name="billing", precision=0.5, recall=1.0, f1=0.667, support=4, predicted=8)
    report = EvalReport(
        model="m", n=8, accuracy=0.5, macro_f1=0.4, ece=None, interval=(0.2, 0.8), errors=1, labels=[label]
    )
    print_evaluation(console, report)
    assert "50.0%" in stream.getvalue()
    assert "20.0% to 80.0%" in stream.getvalue()
    assert "1 texts could not be scored" in stream.getvalue()
    assert "66.7%" in stream.getvalue()

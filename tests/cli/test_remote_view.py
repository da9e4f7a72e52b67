"""Events and jobs as a person sees them. Whatever a server sends can do nothing to a terminal."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from afdc.cli.asking import record_of
from afdc.cli.job_view import JobEndedError, check_end, job_state, print_job
from afdc.cli.output import age, print_table, to_json
from afdc.cli.progress import LiveProgress
from afdc.cli.submit import Asked, print_estimate
from afdc.cli.watch import EventClock, EventView
from afdc.result import RoundResult
from afdc.wire.jobs import Estimate, Event, Job
from afdc.wire.models import Prediction

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
EVIL = "a\x1b[2Jb\u202e\x07\n\tc"


def console(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=terminal, width=100, highlight=False, markup=False), stream


def event(number: int, kind: str, seconds: float, **data: Any) -> Event:
    return Event(id=number, kind=kind, at=START + timedelta(seconds=seconds), data=data)


def shown(events: Sequence[Event], since: float = 1e6, *, terminal: bool = False) -> str:
    """What is printed; events up to `since` seconds are history."""
    found, stream = console(terminal=terminal)
    clock = EventClock(lambda: 0.0)
    with LiveProgress(found, clock) as progress:
        view = EventView(progress, clock, START + timedelta(seconds=since))
        for one in events:
            view.show(one)
    return stream.getvalue()


SCORING = {"round": 1, "stage": "score", "title": "score texts", "total": 100}


def test_stages_have_the_times_of_the_server_and_the_counts_of_the_last_progress() -> None:
    lines = shown(
        [
            event(1, "job_queued", 0),
            event(2, "job_running", 90),
            event(3, "stage_started", 91, **SCORING),
            event(4, "progress", 95, stage="score", done=40, total=100, kept=30),
            event(5, "progress", 99, stage="score", done=90, total=100, kept=70, note="x", tokens=True),
            event(6, "stage_finished", 101, round=1, stage="score", took=10.0),
            event(7, "stage_finished", 101, round=1, stage="stop", took=0.0),
            event(8, "round_finished", 101, round=1, candidates=100, selected=70, flip_rate=0.05, activated=False),
            event(9, "job_finalizing", 101),
            event(10, "job_succeeded", 103),
        ]
    ).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "- wait in the queue",
        "✓ wait in the queue 1 min 30 s",
        "- prepare",
        "✓ prepare 1.0 s",
        "- score texts, round 1 (100)",
        "✓ score texts, round 1 10.0 s 100/100 · 10.0/s · kept 70",
        "round 1: 70 of 100 texts kept, 5.0% flipped, adapter not used",
        "- publish the results",
        "✓ publish the results 2.0 s",
    ]


def test_only_news_is_told_step_by_step() -> None:
    steps = [event(n, "progress", 20 * n, stage="score", done=10 * n) for n in range(1, 6)]
    begun = [event(1, "stage_started", 0, **SCORING), *steps]
    assert shown(begun).count("score texts, round 1:") == 0
    assert shown(begun, since=60).count("score texts, round 1:") == 2


@pytest.mark.parametrize(
    ("kind", "mark"), [("job_failed", "✗"), ("job_paused", "○"), ("job_cancelled", "○"), ("job_queued", "○")]
)
def test_a_stage_that_breaks_off_is_marked(kind: str, mark: str) -> None:
    lines = shown([event(1, "stage_started", 0, **SCORING), event(2, kind, 5)]).splitlines()
    assert lines[1].startswith(f"{mark} score texts, round 1")


def test_events_of_another_version_are_passed_over() -> None:
    text = shown(
        [
            event(1, "job_pondering", 0, depth=3),
            event(2, "stage_started", 0, round="one", stage=[]),
            event(3, "progress", 0, stage=None, done="x"),
            event(4, "stage_started", 0, **SCORING),
            event(5, "progress", 1, stage="score", done=float("nan"), kept=10**400, self=1.0, lost={"a": 1}),
            event(6, "round_finished", 1, round=None),
            event(7, "stage_finished", 2),
            event(8, "note", 2, text=3),
        ]
    )
    assert "- score texts, round 1 (100)" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_events_cannot_act_on_the_terminal(terminal: bool) -> None:
    text = shown(
        [
            event(1, "stage_started", 0, round=0, stage=EVIL, title=f"[red]{EVIL}", total=None),
            event(2, "progress", 1, stage=EVIL, done=1, **{EVIL: 3.0}),
            event(3, "note", 2, text=EVIL),
        ],
        since=0,
        terminal=terminal,
    )
    assert "\x1b[2J" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "[red]a" in text


def job(status: str = "running", **more: Any) -> Job:
    return Job.model_validate({"id": "job_1", "status": status, "seeds": "seed_1", **STAMPS, **more})


STAMPS = {"created_at": START, "updated_at": START + timedelta(minutes=2), "started_at": START}


def test_a_job_cannot_act_on_the_terminal() -> None:
    error = {"code": EVIL, "message": EVIL, "category": "server", "retryable": False}
    named = dict.fromkeys(
        ("id", "name", "model", "model_revision", "preset", "dataset", "adapter", "stop_reason"), EVIL
    )
    found, stream = console()
    print_job(found, job("failed", error=error, **named), [RoundResult(round=0, candidates=1, selected=1, note=EVIL)])
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "2 min 0 s" in text


def test_state_and_next_steps() -> None:
    going = job(stage="train", round=1, progress={"fraction": 0.43, "eta_seconds": 182})
    assert job_state(going) == "running: train, round 1, 43%, 3 min 2 s left"
    assert job_state(job("paused", progress={"fraction": 0.5})) == "paused: 50%"
    found, stream = console()
    print_job(found, job("paused"), [])
    assert "afdc resume job_1" in stream.getvalue()


@pytest.mark.parametrize(
    ("status", "error", "code", "says"),
    [
        ("cancelled", None, 7, "go on with: afdc retry job_1"),
        ("expired", None, 6, "go on with: afdc retry job_1"),
        ("failed", ("server", True), 6, "go on with: afdc retry job_1"),
        ("failed", ("server", False), 6, "The server's log has the details"),
        ("failed", ("user", False), 6, "submit it as a new job"),
    ],
)
def test_ends(status: str, error: tuple[str, bool] | None, code: int, says: str) -> None:
    told = error and {"code": "c", "message": "m", "category": error[0], "retryable": error[1]}
    with pytest.raises(JobEndedError, match=says) as caught:
        check_end(job(status, error=told))
    assert caught.value.exit_code == code
    check_end(job("succeeded"))


def test_a_table_keeps_ids_whole_and_a_pipe_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"job": "job_" + "0" * 32, "status": "running", "name": "[b]" + "x" * 200}]
    found, stream = console(terminal=True)
    print_table(found, rows, "name")
    assert rows[0]["job"] in stream.getvalue()
    assert "[b]xxx" in stream.getvalue()
    assert "…" in stream.getvalue()
    found, stream = console()
    print_table(found, rows, "name")
    assert stream.getvalue() == ""
    assert capsys.readouterr().out == "\t".join(rows[0].values()) + "\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0 s"), (59.9, "59 s"), (3599, "59 min"), (7300, "2 h"), (1e6, "11 d")]
)
def test_age(seconds: float, text: str) -> None:
    assert age(START, START + timedelta(seconds=seconds)) == text


def test_an_estimate_of_another_version_is_shown_as_far_as_it_goes() -> None:
    found, stream = console()
    plan = {EVIL: EVIL, "parts": {"a": [1]}, "seconds": {"train": 60, "odd": "x"}}
    asked = Asked({}, "default", {"seed": 3, "loop": {"rounds": 1}}, "")
    print_estimate(found, Estimate(seconds=1, prompt_tokens=1, completion_tokens=1, rows=7, plan=plan), asked)
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "loop.rounds = 1" in text
    assert "1 min 0 s" in text


def test_predictions_are_as_those_made_here() -> None:
    assert record_of(Prediction(text="x", error="too long")) == {"text": "x", "error": "too long"}
    assert record_of(Prediction(text="x", label="Paris", confidence=0.5))["answer"] == "Paris"
    full = Prediction(text="x", label="a", confidence=1.0, probs={"a": 1.0}, label_logprobs={"a": None})
    assert record_of(full)["label_logprobs"] == {"a": None}


def test_json_holds_nothing_that_a_terminal_obeys() -> None:
    value = {EVIL: [EVIL + "\u009b2J\u2029", "déjà 配送"]}
    text = to_json(value, indent=2)
    assert json.loads(text) == value
    assert not set(text) & set("\x1b\x07\u009b\u202e\u2029")
    assert "déjà 配送" in text


def test_a_narrow_table_keeps_ids_whole_and_names_in_sight() -> None:
    rows = [{"id": "key_0123456789", "name": "the laptop of ada", "created": "2026-01-01 10:00", "last used": "3 d"}]
    shown = Console(width=30, file=io.StringIO(), force_terminal=True, color_system=None)
    print_table(shown, rows, "name")
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "key_0123456789" in text
    assert "the lap" in text
    assert "2026" not in text

"""What `wait` shows where."""

from __future__ import annotations

import io
import sys
from types import ModuleType
from typing import Any

import pytest

from afdc.sdk.progress import PlainView, view_for
from afdc.sdk.render import duration, job_line, one_line
from afdc.sdk.terminal import TerminalView
from afdc.wire.jobs import Job
from tests.sdk.service import JOB, Service, Time, job, settle

LOOK = f"GET /v1/jobs/{JOB}"


def state(status: str = "running", fraction: float = 0.25, **extra: Any) -> Job:
    progress = {"fraction": fraction, "eta_seconds": 75.2, "counts": {"kept_rows": 1200.0, "none": 0}}
    return Job.model_validate(job(status, stage="train", round=1, progress=progress) | extra)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line() -> None:
    assert job_line(state()) == "running · train, round 1 · 25% · 1 min 15 s left · kept rows 1,200"
    assert job_line(state("succeeded")) == "succeeded · train, round 1"
    assert [duration(s) for s in (0.4, 59.4, 75.2, 7260)] == ["0 s", "59 s", "1 min 15 s", "2 h 1 min"]
    assert one_line("a\n\x1b[31mb\u202e" + "c" * 200, 12) == "a \ufffd[31mb\ufffdcc…"


def test_plain_lines(time: Time) -> None:
    stream = io.StringIO()
    with PlainView(JOB, stream, lambda: time.now) as view:
        for seconds, fraction in ((0, 0.1), (1, 0.2), (20, 0.3), (20, 0.3)):
            time.now += seconds
            view.show(state(fraction=fraction))
        view.show(state("succeeded"))
    lines = stream.getvalue().splitlines()
    assert [("10%" in line, "30%" in line, "succeeded" in line) for line in lines] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]
    assert all(line.startswith(f"{JOB}: ") for line in lines)
    assert "\x1b" not in stream.getvalue()


def test_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    view = view_for(JOB, stream)
    assert isinstance(view, TerminalView)
    with view:
        view.show(state(stage="[red]evil\x1b[2J"))
    assert "[red]evil" in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()
    assert "\x1b[?25h" in stream.getvalue(), "the cursor is shown again"


def test_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with view_for(JOB) as view:
        view.show(state())


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for IPython inside a kernel; the list is what its cell shows, one entry an update."""
    found: list[str] = []
    shell = type("ZMQInteractiveShell", (), {})()
    display = ModuleType("IPython.display")

    class Handle:
        def update(self, content: Any) -> None:
            found.append(content)

    def show(content: Any, display_id: bool) -> Handle:
        found.append(content)
        return Handle()

    vars(display).update(HTML=lambda html: html, display=show)
    ipython = ModuleType("IPython")
    vars(ipython).update(get_ipython=lambda: shell, display=display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return found


async def test_a_notebook(client: Any, service: Service, shown: list[str]) -> None:
    service.on(LOOK, job(), job(), job(stage="train"), job("succeeded"))
    await settle((await settle(client.jobs.get(JOB))).wait())
    assert len(shown) == 3, "one cell output, renewed when something changed"
    assert "<table>" in shown[0]
    assert "succeeded" in shown[-1]


async def test_wait_shows_lines_by_itself(
    client: Any, service: Service, capsys: pytest.CaptureFixture[str], time: Time
) -> None:
    service.on(LOOK, job(), job(), job(stage="train", round=0), job("succeeded"))
    handle = await settle(client.jobs.get(JOB))
    assert await settle(handle.wait()) is handle
    assert handle.status == "succeeded"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"{JOB}: running",
        f"{JOB}: running · train, round 0",
        f"{JOB}: succeeded",
    ]
    assert [request.url.params.get("wait") for request in service.requests] == [None, None, "5", "5"]
    await settle(handle.wait(progress=False))
    assert capsys.readouterr().err == ""

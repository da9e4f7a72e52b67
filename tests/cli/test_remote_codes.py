"""Exit codes and messages of remote commands, each against the real server."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from afdc.errors import ModelError
from tests.cli.remote_world import SUBMIT, Remote, write_inputs
from tests.service.world import SlottedEngine, World, finished, running, wait_for

NOWHERE = "job_0190a0a0a0a07000800000000000000a"
OF_A_JOB = [
    ("watch",),
    ("jobs",),
    ("pause",),
    ("resume",),
    ("cancel",),
    ("retry",),
    ("pull",),
    ("export", "--format", "csv", "--output", "x.csv"),
    ("predict", "a text", "--job"),
]


@pytest.mark.parametrize("command", OF_A_JOB, ids=lambda command: command[0])
def test_a_job_that_is_not_there_is_4(remote: Remote, command: tuple[str, ...]) -> None:
    code, out, err = remote(*command, NOWHERE)
    assert (code, out) == (4, "")
    assert NOWHERE in err
    assert list(Path.cwd().glob("*.csv")) == []


def test_another_tenants_job_is_4(remote: Remote, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = remote(*SUBMIT)[1].strip()
    monkeypatch.setenv("AFDC_API_KEY", world.key("stranger", "read", "jobs"))
    assert remote("jobs", job)[0] == 4
    assert remote("cancel", job)[0] == 4
    assert remote("keys", "list")[0] == 3, "a key that may not"


@pytest.mark.parametrize("command", [("jobs",), ("watch", NOWHERE), SUBMIT, ("keys", "list")], ids=lambda one: one[0])
@pytest.mark.parametrize("wrong", ["", "afdc_wrong-key-0123456789"])
def test_a_wrong_key_and_none_are_3(
    remote: Remote,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    wrong: str,
) -> None:
    monkeypatch.setenv("AFDC_API_KEY", wrong)
    code, out, err = remote(*command)
    assert (code, out) == (3, "")
    assert "AFDC_API_KEY" in err
    assert not wrong or wrong not in err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("submit",), "--seeds missing"),
        ((*SUBMIT, "--set", "engine.dtype=float32"), "engine"),
        ((*SUBMIT, "--set", "model=x"), "model"),
        ((*SUBMIT, "--set", "loop.round=1"), "did you mean 'rounds'"),
        ((*SUBMIT, "--dry-run", "--watch"), "--dry-run"),
        ((*SUBMIT, "--idempotency-key", "with space"), "idempotency key"),
        (("jobs", "a/b"), "is not an id"),
        (("jobs", "--server", "ftp://x"), "--server"),
        (("export", NOWHERE, "--format", "word", "--output", "x"), "--format"),
        (("export", NOWHERE, "--format", "csv", "--output", "-", "--json"), "stdout"),
        (("jobs", "--status", "dead"), "--status"),
    ],
)
def test_usage_is_2(remote: Remote, args: tuple[str, ...], says: str) -> None:
    code, out, err = remote(*args)
    assert (code, out) == (2, "")
    assert says in err


def test_what_the_server_refuses_is_5(remote: Remote) -> None:
    Path("bad.jsonl").write_text('{"text": "a", "label": "ALPHA"}\n{"text": "b", "label": "OMEGA"}\n')
    code, out, err = remote("submit", "--seeds", "bad.jsonl", "--task", "task.json")
    assert (code, out) == (5, "")
    assert "line 2" in err
    code, _, err = remote(*SUBMIT, "--set", "train.rank=128")
    assert code == 5
    assert "/settings/train/rank" in err
    assert remote("submit", "--seeds", "no-such.jsonl")[0] == 5


def test_a_conflict_is_5(remote: Remote, world: World) -> None:
    job = remote(*SUBMIT)[1].strip()
    with world.client() as client:
        finished(client, job)
    for command in ("pause", "cancel", "retry"):
        code, _, err = remote(command, job)
        assert code == 5
        assert "succeeded" in err
    assert remote(*SUBMIT, "--idempotency-key", "once")[0] == 0
    assert remote(*SUBMIT, "--idempotency-key", "once", "--name", "other")[0] == 5


def test_a_job_that_fails_is_6_and_shows_why(folder: Path, tmp_path: Path) -> None:
    def fail(what: str) -> None:
        if what.startswith("generate"):
            raise ModelError("the model has had \x1b[31menough")

    with running(tmp_path / "failing", SlottedEngine(on_call=fail)) as failing:
        environ = {**os.environ, "AFDC_SERVER": failing.address, "AFDC_API_KEY": failing.key()}
        command = [sys.executable, "-m", "afdc", *SUBMIT, "--watch"]
        found = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    job = found.stdout.split()[0]
    assert found.returncode == 6
    assert "✗ generate variants" in found.stderr
    assert f"job {job} failed: the model has had \ufffd[31menough" in found.stderr
    assert "Change what was asked for, and submit it as a new job" in found.stderr
    assert "error      the model has had" in found.stdout
    assert "\x1b" not in found.stdout + found.stderr


def test_no_server_is_8(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFDC_SERVER", "http://127.0.0.1:9")
    code, out, err = remote("jobs")
    assert (code, out) == (8, "")
    assert "cannot reach http://127.0.0.1:9" in err
    assert "afdc-server" in err


@pytest.fixture(scope="module")
def paused(tmp_path_factory: pytest.TempPathFactory, world: World) -> Iterator[tuple[Path, dict[str, str], str]]:
    """A job that stands still, and a place for programs of their own that look at it."""
    work = tmp_path_factory.mktemp("paused")
    write_inputs(work)
    environ = {name: text for name, text in os.environ.items() if not name.startswith("AFDC_")}
    environ |= {"AFDC_SERVER": world.address, "AFDC_API_KEY": world.key(), "XDG_CONFIG_HOME": str(work)}
    environ |= {"AFDC_CACHE": str(work), "TERM": "xterm", "COLUMNS": "100"}
    run = [sys.executable, "-m", "afdc"]
    long = [*run, *SUBMIT, "--rounds", "50", "--set", "loop.patience=99"]  # it must not end before it is paused
    made = subprocess.run(long, cwd=work, env=environ, capture_output=True, text=True, check=True)
    job = made.stdout.strip()
    subprocess.run([*run, "pause", job], cwd=work, env=environ, capture_output=True, check=True)
    with world.client() as client:
        wait_for(lambda: client.get(f"/jobs/{job}").json()["status"] == "paused")
        yield work, environ, job
        client.post(f"/jobs/{job}/cancel")


def start(place: tuple[Path, dict[str, str], str], stream: int, *args: str, **more: str) -> subprocess.Popen[bytes]:
    work, environ, _ = place
    command = [sys.executable, "-m", "afdc", *args]
    return subprocess.Popen(command, cwd=work, env=environ | more, stdout=subprocess.PIPE, stderr=stream)


def read_until(descriptor: int, wanted: bytes, seconds: float = 30.0) -> bytes:
    """What comes until `wanted` is in it."""
    found, end = b"", time.monotonic() + seconds
    while wanted not in found:
        assert time.monotonic() < end, found
        found += os.read(descriptor, 65536)
    return found


def test_ctrl_c_while_watching_detaches(paused: tuple[Path, dict[str, str], str], world: World) -> None:
    job = paused[2]
    process = start(paused, subprocess.PIPE, "watch", job)
    assert process.stderr is not None
    shown = read_until(process.stderr.fileno(), b"- paused")
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, b"")
    assert f"the job goes on. Come back to it with: afdc watch {job}".encode() in rest
    assert b"Traceback" not in rest
    assert b"\x1b" not in shown + rest
    with world.client() as client:
        assert client.get(f"/jobs/{job}").json()["status"] == "paused"


@pytest.mark.parametrize("no_color", [False, True])
def test_on_a_terminal_the_line_moves_and_the_cursor_comes_back(
    paused: tuple[Path, dict[str, str], str], no_color: bool
) -> None:
    leader, follower = pty.openpty()
    process = start(paused, follower, "watch", paused[2], **({"NO_COLOR": "1"} if no_color else {}))
    os.close(follower)
    shown = read_until(leader, b"paused")
    process.send_signal(signal.SIGINT)
    shown += read_until(leader, b"Come back")
    process.communicate(timeout=20)
    os.close(leader)
    assert process.returncode == 130
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l"), "the cursor is shown again"
    assert (b"\x1b[32m" in shown) is not no_color


def test_a_data_set_is_not_written_to_a_terminal(paused: tuple[Path, dict[str, str], str]) -> None:
    leader, follower = pty.openpty()
    work, environ, job = paused
    command = [sys.executable, "-m", "afdc", "export", job, "--format", "csv", "--output", "-"]
    found = subprocess.run(command, cwd=work, env=environ, stdout=follower, stderr=subprocess.PIPE, check=False)
    os.close(follower)
    os.close(leader)
    assert found.returncode == 2
    assert b"not for a terminal" in found.stderr


def test_ctrl_c_while_submitting_says_how_to_repeat_it(
    paused: tuple[Path, dict[str, str], str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = start(paused, subprocess.PIPE, *SUBMIT, "--idempotency-key", "mine", AFDC_SERVER=address)
        silent.settimeout(30)
        connection, _ = silent.accept()
        connection.settimeout(30)
        connection.recv(100)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        connection.close()
    assert process.returncode == 130
    assert b"with --idempotency-key mine: it makes the job once" in err


def test_a_reader_that_goes_away_is_no_error(paused: tuple[Path, dict[str, str], str], world: World) -> None:
    job = paused[2]
    with world.client() as client:
        done = next(one["id"] for one in client.get("/jobs", params={"status": "succeeded"}).json()["data"])
    for args in (("jobs", job), ("export", done, "--format", "csv", "--output", "-")):
        reading, writing = os.pipe()
        os.close(reading)
        work, environ, _ = paused
        command = [sys.executable, "-m", "afdc", *args]
        found = subprocess.run(command, cwd=work, env=environ, stdout=writing, stderr=subprocess.PIPE, check=False)
        os.close(writing)
        assert (found.returncode, found.stderr) == (0, b"")

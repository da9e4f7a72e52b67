"""The command line as a user meets it: streams, exit codes, messages."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from afdc import config as afdc_config
from afdc.cli import labelling, main
from afdc.cli import options as cli_options
from afdc.cli.doctor import needed_packages
from afdc.errors import AdapterError, InterruptedRunError
from afdc.result import AdapterRef, EvalSummary, Evaluation, PathRows, RoundResult, RunResult

EXAMPLE = Path(__file__).parents[2] / "examples" / "support_tickets"
Outcome = tuple[int, str, str]
Cli = Callable[..., Outcome]


def afdc(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The real program in a process of its own."""
    env = {**os.environ, "XDG_CONFIG_HOME": "/nonexistent", **environ}
    return subprocess.run([sys.executable, "-m", "afdc", *args], capture_output=True, text=True, env=env, check=False)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The program inside this process, so that a test may put something in the place of the job."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("AFDC_CACHE", str(tmp_path / "cache"))

    def call(*args: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["afdc", *args])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    return call


def make_result(**changes: Any) -> RunResult:
    values: dict[str, Any] = {
        "status": "succeeded",
        "job": "job-1",
        "model": "tiny",
        "preset": "default",
        "config_hash": "0",
        "seeds": 32,
        "labels": ["billing", "delivery"],
        "rounds": [RoundResult(round=0, candidates=500, selected=200, eval=Evaluation(accuracy=0.6, n=48))],
        "eval": EvalSummary(base=0.3, seeds_only=0.6, final=0.75, n=48),
        "dropped": {"near_duplicate": 12},
        "dataset": PathRows(rows=232, path="OUT/dataset"),
        "adapter": AdapterRef(path="OUT/adapter", name="job-1-r1"),
    }
    return RunResult.model_validate(values | changes)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for the job itself: `result` is returned, or raised when it is an exception."""
    state: dict[str, Any] = {"result": make_result()}

    def run_local(request: Any, progress: Any) -> RunResult:
        state["request"] = request
        progress.note("a message")
        if isinstance(state["result"], BaseException):
            raise state["result"]
        return state["result"]  # type: ignore[no-any-return] # the fixture holds values of several types

    import afdc_server.local

    monkeypatch.setattr(afdc_server.local, "run_local", run_local)
    return state


RUN = ("run", "--seeds", str(EXAMPLE / "seeds.jsonl"), "--out", "OUT")


def test_help_is_quick_and_needs_nothing_heavy() -> None:
    best = min(_timed_help() for _ in range(5))
    assert best < 0.3
    code = (
        "import sys; from afdc.cli.app import app; print([m for m in sys.modules if m in {'pydantic','rich','numpy'}])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def _timed_help() -> float:
    started = time.perf_counter()
    result = afdc("--help")
    assert result.returncode == 0
    assert "predict" in result.stdout
    return time.perf_counter() - started


def test_version_and_help_and_unknown_flag() -> None:
    assert afdc("--version").stdout.startswith("afdc 0.")
    for command in ("run", "score", "predict", "eval", "doctor"):
        assert afdc(command, "--help").returncode == 0
    wrong = afdc("run", "--sedes", "x")
    assert wrong.returncode == 2
    assert "--seeds" in wrong.stderr
    assert wrong.stdout == ""


def test_choices_are_those_of_the_config() -> None:
    assert get_args(cli_options.PresetName) == get_args(afdc_config.Preset)
    assert get_args(cli_options.StrategyName) == get_args(afdc_config.Strategy)


def test_completion_is_offered() -> None:
    shown = afdc("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert shown.returncode == 0
    assert "_AFDC_COMPLETE" in shown.stdout


def test_the_rounds_show_what_the_gate_compared(cli: Cli, job: dict[str, Any]) -> None:
    held = [Evaluation(accuracy=0.75, n=32, log_loss=loss) for loss in (0.7052, 0.1653)]
    rounds = [RoundResult(round=i, candidates=500, selected=200, holdout=one) for i, one in enumerate(held)]
    job["result"] = make_result(rounds=rounds)
    _, out, _ = cli(*RUN)
    assert "log loss" in out
    assert "0.705" in out
    assert "0.165" in out


def test_summary_goes_to_stdout_and_messages_to_stderr(cli: Cli, job: dict[str, Any]) -> None:
    code, out, err = cli(*RUN, "--rounds", "3", "--set", "select.per_label=9")
    assert code == 0
    assert job["request"].config.loop.rounds == 3
    assert job["request"].config.select.per_label == 9
    assert job["request"].out == Path("OUT")
    for expected in ("base model", "75.0%", "+15.0 points", "232", "near duplicate", "OUT/dataset", "afdc predict"):
        assert expected in out
    assert "a message" in err
    assert "a message" not in out
    assert "\x1b" not in out + err


def test_advice_is_told_before_the_places(cli: Cli, job: dict[str, Any]) -> None:
    advice = "1 of 2 labels have no row but their seeds: billing. " + "Give more seeds of them. " * 5
    job["result"] = make_result(advice=[advice])
    _, out, _ = cli(*RUN)
    told, found, _ = " ".join(out.split()).partition("Where it lies")
    assert found
    assert told.endswith(f"Note: {advice}")


def test_what_a_round_has_to_say_stands_below_the_table(cli: Cli, job: dict[str, Any]) -> None:
    note = "target_rows: 200 rows became 380 of 400 in 2 further augment rounds: " + "the last one added little " * 3
    job["result"] = make_result(rounds=[RoundResult(round=0, candidates=500, selected=380, note=note)])
    _, out, _ = cli(*RUN)
    assert f"round 0: {note.strip()}" in " ".join(out.split())


def test_json_is_the_result_and_nothing_else(cli: Cli, job: dict[str, Any]) -> None:
    code, out, _ = cli(*RUN, "--json")
    assert code == 0
    assert RunResult.model_validate_json(out) == job["result"]


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (AdapterError("the adapter is torn", remedy="Copy it again"), 6, "afdc: the adapter is torn. Copy it again"),
        (InterruptedRunError("stopped", remedy="Run the same command to go on"), 130, "Run the same command"),
        (KeyboardInterrupt(), 130, "run the same command again"),
        (ValueError("oh"), 6, "unexpected error: ValueError: oh. The details are in "),
    ],
)
def test_errors_are_one_message_and_a_code(
    cli: Cli, job: dict[str, Any], raised: BaseException, code: int, message: str
) -> None:
    job["result"] = raised
    got, out, err = cli(*RUN)
    assert got == code
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_the_log_of_an_unforeseen_error_exists(cli: Cli, job: dict[str, Any]) -> None:
    job["result"] = ValueError("oh")
    _, _, err = cli(*RUN)
    log = Path(err.strip().rsplit(" in ", 1)[1])
    assert "ValueError: oh" in log.read_text()


def test_debug_shows_the_traceback(cli: Cli, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFDC_DEBUG", "1")
    job["result"] = AdapterError("torn")
    assert "Traceback" in cli(*RUN)[2]


def test_a_failed_run_is_a_failure(cli: Cli, job: dict[str, Any]) -> None:
    job["result"] = make_result(status="failed", error="the disk is full")
    code, out, err = cli(*RUN, "--json")
    assert code == 6
    assert json.loads(out)["status"] == "failed"
    assert "the disk is full" in err


def test_missing_paths_are_told_together(cli: Cli) -> None:
    code, _, err = cli("run")
    assert code == 2
    assert "--seeds and --out missing" in err


def test_project_file_alone_is_enough(cli: Cli, job: dict[str, Any]) -> None:
    Path("afdc.toml").write_text('[run]\nseeds = "s.jsonl"\nout = "out"\n[run.loop]\nrounds = 5\n')
    assert cli("run")[0] == 0
    assert job["request"].config.loop.rounds == 5
    assert job["request"].seeds == Path("s.jsonl")


def test_bad_input_ends_before_an_engine_starts(cli: Cli) -> None:
    Path("seeds.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": \n')
    code, out, err = cli("run", "--seeds", "seeds.jsonl", "--out", "OUT")
    assert code == 5
    assert out == ""
    assert "seeds.jsonl:2: broken JSON" in err
    assert not Path("OUT").exists()


def test_dry_run_prints_the_plan_and_writes_nothing(cli: Cli) -> None:
    code, out, _ = cli(*RUN, "--dry-run")
    assert code == 0
    assert "select.threshold = 0.0" in out
    assert "candidates" in out
    assert "total" in out
    code, out, _ = cli(*RUN, "--dry-run", "--json")
    plan = json.loads(out)
    assert plan["config"]["loop"]["rounds"] == 2
    assert plan["plan"]["seconds"]["total"] > 0
    assert not Path("OUT").exists()


def test_predict_without_task_or_adapter_is_a_usage_error(cli: Cli) -> None:
    code, _, err = cli("predict", "hello")
    assert code == 2
    assert "--task" in err


@pytest.mark.parametrize(
    ("texts", "stdin", "says"),
    [
        (["-"], b"good\nb\xffd\n", "<stdin>:2: not UTF-8"),
        (["-"], b"good\na\0b\n", "<stdin>:2: the text holds a NUL"),
        (["good", "b\udcffd"], b"", "text 2 of the command line: the text holds half of a surrogate pair"),
        (["-"], b" \n", "<stdin>: there are no texts"),
        (["good", "  "], b"", "text 2 of the command line: the text is empty"),
    ],
)
def test_texts_that_are_none_end_before_an_engine_starts(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, texts: list[str], stdin: bytes, says: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8", "surrogateescape"))
    code, out, err = cli("predict", "--task", str(EXAMPLE / "task.json"), *texts)
    assert (code, out) == (5, "")
    assert f"afdc: {says}" in err


@pytest.mark.parametrize(
    ("command", "own"),
    [("score", ["--input", "a", "--output", "b"]), ("predict", ["a text"]), ("eval", ["--input", "a"])],
)
def test_labelling_commands_share_the_options_of_who_labels(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str, own: list[str]
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(labelling, f"{command}_command", lambda *given, as_json: seen.append((*given, as_json)))
    shared = ["--task", "t", "--adapter", "d", "--model", "m", "--config", "c", "--set", "a.b=1", "--set", "c.d=2"]
    assert cli(command, *own, *shared, "--json")[0] == 0
    flags, *rest = seen[0]
    assert flags == labelling.LabellerFlags(Path("t"), Path("d"), "m", Path("c"), ("a.b=1", "c.d=2"))
    assert rest == [*([own] if command == "predict" else map(Path, own[1::2])), True]


def test_an_adapter_folder_that_is_none(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("predict", "hello", "--adapter", str(tmp_path))
    assert code == 6
    assert "holds no adapter" in err


def test_doctor_reports_json(cli: Cli) -> None:
    code, out, _ = cli("doctor", "--json")
    names = [check["name"] for check in json.loads(out)]
    assert names == ["python", "packages", "device", "models", "encoder", "disk", "settings"]
    assert code in {0, 6}


def test_doctor_knows_what_a_run_needs() -> None:
    assert {"numpy", "pyarrow", "torch", "peft", "sqlalchemy"} <= set(needed_packages())
    assert not {"afdc", "typer", "vllm"} & set(needed_packages())


@pytest.mark.parametrize("args", [("--version",), (*RUN, "--dry-run"), (*RUN, "--dry-run", "--json")])
def test_a_reader_of_stdout_that_went_away_is_no_error(args: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [sys.executable, "-m", "afdc", *args], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, "")


def test_any_other_broken_pipe_is_an_error(cli: Cli, job: dict[str, Any]) -> None:
    job["result"] = BrokenPipeError(errno.EPIPE, "Broken pipe")
    code, out, err = cli(*RUN)
    assert (code, out) == (6, "")
    assert "unexpected error: BrokenPipeError" in err
    assert "BrokenPipeError" in Path(err.strip().rsplit(" in ", 1)[1]).read_text()


def test_a_job_goes_on_when_nobody_reads_its_messages(tmp_path: Path) -> None:
    code = (
        "from afdc.cli.output import message_console\nconsole = message_console()\n"
        "for _ in range(3): console.print('x')\nprint('done')"
    )
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writing, text=True, check=False
    )
    os.close(writing)
    assert (result.returncode, result.stdout) == (0, "done\n")

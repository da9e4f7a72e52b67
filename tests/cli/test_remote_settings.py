"""Which server, and which key goes to it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from afdc import config as afdc_config
from afdc.cli import options
from afdc.cli.connect import Place, ServerFlags, find_server
from afdc.errors import UsageError
from afdc.setting_files import server_tables
from afdc.settings import Layer, load_settings
from afdc.wire import datasets, jobs

HERE, THERE, ELSEWHERE = "http://127.0.0.1:8741", "https://afdc.example", "https://other.example:8000"
SECRET = "afdc_canary-secret-0123456789"  # noqa: S105  # of no server
NO_FLAGS = ServerFlags()
OWN = Path("config/afdc/config.toml")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def find(flags: ServerFlags = NO_FLAGS, **environ: str) -> Place:
    return find_server(flags, {"XDG_CONFIG_HOME": "config", **environ})


def write(path: Path, url: str = "", key: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f'url = "{url}"' if url else "", f'api_key = "{key}"' if key else ""]
    path.write_text("\n".join(["[server]", *lines]))
    return path


def test_each_layer_wins_over_the_one_below() -> None:
    assert find() == Place(HERE, "", "")
    write(OWN, THERE, "own")
    assert find() == Place(THERE, "own", str(OWN))
    write(Path("afdc.toml"), ELSEWHERE, "project")
    assert find() == Place(ELSEWHERE, "project", "afdc.toml")
    assert find(AFDC_SERVER=HERE) == Place(HERE, "", "AFDC_SERVER")
    assert find(ServerFlags(f"{THERE}/v1/"), AFDC_SERVER=HERE) == Place(THERE, "own", "--server")
    assert find(AFDC_SERVER=THERE, AFDC_API_KEY="env").api_key == "env"
    other = write(Path("other.toml"), THERE, "other")
    assert find(ServerFlags(config=other)) == Place(THERE, "other", "other.toml")


def test_a_key_of_a_file_goes_to_no_other_server() -> None:
    write(OWN, THERE, "own")
    assert find(AFDC_SERVER=ELSEWHERE).api_key == ""
    assert find(ServerFlags(THERE)).api_key == "own"
    write(Path("afdc.toml"), ELSEWHERE)
    assert find().api_key == ""
    write(Path("afdc.toml"), THERE)
    assert find().api_key == "own"


def test_the_key_of_the_environment_does_not_go_where_only_a_project_file_points() -> None:
    write(Path("afdc.toml"), ELSEWHERE)
    with pytest.raises(
        UsageError, match=r"AFDC_API_KEY is not sent to https://other\.example:8000.*afdc\.toml"
    ) as told:
        find(AFDC_API_KEY=SECRET)
    assert SECRET not in str(told.value)
    assert find(AFDC_API_KEY=SECRET, AFDC_SERVER=ELSEWHERE).api_key == SECRET
    assert find(ServerFlags(config=Path("afdc.toml")), AFDC_API_KEY=SECRET).api_key == SECRET
    write(Path("afdc.toml"), ELSEWHERE, "project")
    assert find(AFDC_API_KEY=SECRET).api_key == "project"
    write(Path("afdc.toml"), HERE)
    assert find(AFDC_API_KEY=SECRET).api_key == SECRET, "this machine"
    write(Path("afdc.toml"), ELSEWHERE)
    write(OWN, ELSEWHERE)
    assert find(AFDC_API_KEY=SECRET).api_key == SECRET, "the user's own file names it too"


def test_no_repr_shows_a_key() -> None:
    write(OWN, THERE, SECRET)
    assert SECRET not in repr(find())
    assert SECRET not in repr(server_tables(None, {"XDG_CONFIG_HOME": "config"}))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.toml", '[server]\nulr = "x"', r"a\.toml: server\.ulr: unknown key"),
        ("a.toml", f'[server]\napi_key = "{SECRET}"', r"server\.api_key without server\.url"),
        ("a.toml", f'[server]\nurl = 3\napi_key = "{SECRET}"', r"server\.url: a name belongs here"),
        ("a.toml", 'server = "x"', r"a\.toml: server: "),
        ("a.toml", f'[server]\nurl = "ftp://x"\napi_key = "{SECRET}"', r"a\.toml: 'ftp://x' is not the address"),
        ("a.toml", f'[server]\nurl = "{THERE}"\napi_key = "{SECRET} x"', "the API key holds a space"),
        ("a.yaml", f"server:\n  url: x\n  api_key: '{SECRET}\n", "broken YAML"),
        ("a.yaml", f"server:\n  api_key: [{SECRET}\n  url: x\n", "broken YAML"),
        ("a.toml", f'[server]\napi_key = "{SECRET}\n', "cannot be read"),
    ],
)
def test_faults_name_the_file_and_hold_no_key(name: str, text: str, says: str) -> None:
    Path(name).write_text(text)
    with pytest.raises(UsageError, match=says) as told, find(ServerFlags(config=Path(name))).connect():
        pass
    assert SECRET not in str(told.value)


def test_a_run_passes_the_server_over() -> None:
    write(Path("afdc.toml"), THERE, SECRET)
    with Path("afdc.toml").open("a") as stream:
        stream.write("\n[run.loop]\nrounds = 7\n")
    settings = load_settings(Layer({}, str), environ={"XDG_CONFIG_HOME": "config"})
    assert settings.config.loop.rounds == 7
    assert settings.given == {"loop": {"rounds": 7}}


def test_what_was_given_is_the_options_alone() -> None:
    write(OWN).write_text('[run]\npreset = "paper"\n[run.select]\nthreshold = 0.7')
    environ = {"XDG_CONFIG_HOME": "config", "AFDC_SELECT__STRATEGY": "margin"}
    flags = Layer({"select": {"threshold": 0.8}, "seed": 3}, str)
    settings = load_settings(flags, ("loop.token_budget=none",), environ=environ)
    chosen = {"threshold": 0.8, "strategy": "margin"}
    assert settings.given == {"preset": "paper", "select": chosen, "loop": {"token_budget": None}, "seed": 3}


def test_choices_are_those_of_the_contract() -> None:
    assert get_args(options.PresetName) == get_args(afdc_config.Preset)
    assert get_args(options.StrategyName) == get_args(afdc_config.Strategy)
    assert get_args(options.StatusName) == get_args(jobs.JobStatus)
    assert get_args(options.FormatName) == get_args(datasets.ExportFormat)
    assert get_args(options.SplitName) == get_args(datasets.Split)

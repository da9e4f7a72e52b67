"""Layers of settings: who wins, and that every fault is told with the file and the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from afdc.cli.run import OPTION_KEYS, RunFlags
from afdc.config import RunConfig
from afdc.errors import UsageError
from afdc.presets import build_config
from afdc.settings import Layer, Settings, env_layer, file_layer, load_settings, parse_value, set_layer

NO_FLAGS = RunFlags({}, {}).layer()


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def load(
    tmp_path: Path, flags: Layer = NO_FLAGS, sets: tuple[str, ...] = (), file: Path | None = None, **environ: str
) -> Settings:
    return load_settings(flags, sets, file, {"XDG_CONFIG_HOME": str(tmp_path / "config"), **environ})


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_given_is_the_default(tmp_path: Path) -> None:
    assert load(tmp_path).config == RunConfig()


def test_each_layer_wins_over_the_one_below(tmp_path: Path) -> None:
    def threshold(**more: Any) -> float:
        return load(tmp_path, **more).config.select.threshold

    write(tmp_path / "config/afdc/config.toml", "[run.select]\nthreshold = 0.1")
    assert threshold() == 0.1
    write(Path("afdc.toml"), "[run.select]\nthreshold = 0.2")
    assert threshold() == 0.2
    assert threshold(AFDC_SELECT__THRESHOLD="0.3") == 0.3
    assert threshold(AFDC_SELECT__THRESHOLD="0.3", sets=("select.threshold=0.4",)) == 0.4
    flags = RunFlags({}, {"--threshold": 0.5}).layer()
    assert threshold(AFDC_SELECT__THRESHOLD="0.3", sets=("select.threshold=0.4",), flags=flags) == 0.5


def test_config_is_read_instead_of_the_project_file(tmp_path: Path) -> None:
    write(Path("afdc.toml"), "[run]\nseed = 1\n[run.loop]\nrounds = 7")
    other = write(tmp_path / "other.yaml", "run:\n  seed: 2\n")
    settings = load(tmp_path, file=other)
    assert settings.config.seed == 2
    assert settings.config.loop.rounds == RunConfig().loop.rounds


def test_a_preset_from_any_layer_sets_the_defaults_below_all_layers(tmp_path: Path) -> None:
    write(Path("afdc.toml"), '[run]\npreset = "paper"\n[run.select]\nthreshold = 0.8')
    config = load(tmp_path).config
    assert config == build_config("paper", {"select": {"threshold": 0.8}})
    flags = RunFlags({}, {"--preset": "default"}).layer()
    assert load(tmp_path, flags).config.select.agreement is None


def test_paths_are_relative_to_their_file(tmp_path: Path) -> None:
    file = write(tmp_path / "elsewhere/job.toml", '[run]\nseeds = "s.jsonl"\nout = "/abs/out"')
    settings = load(tmp_path, file=file, AFDC_EVAL="e.jsonl")
    assert settings.paths == {
        "seeds": tmp_path / "elsewhere/s.jsonl",
        "out": Path("/abs/out"),
        "eval": Path("e.jsonl"),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[run.select]\ntreshold = 0.5",
            r"afdc\.toml: run\.select\.treshold: unknown option; did you mean 'threshold'",
        ),
        ("[run]\nroundz = 3", r"afdc\.toml: run\.roundz: unknown option; known here"),
        ("[train]\nrank = 8", r"afdc\.toml: unknown key 'train'.*\[run\]"),
        ("[run.select]\nthreshold = 2", r"afdc\.toml: run\.select\.threshold = 2: .*less than or equal to 1"),
        ('[run]\npreset = "fancy"', r"afdc\.toml: run\.preset = 'fancy'"),
        ("[run]\npreset = [1]", r"afdc\.toml: run\.preset"),
        ("[run]\nselect = 3", r"afdc\.toml: run\.select = 3"),
        ("[run]\nseeds = 3", r"afdc\.toml: run\.seeds must be a path"),
        ("run = 3", r"afdc\.toml: run must be a table"),
        ("[run", r"afdc\.toml: cannot be read"),
    ],
)
def test_faults_of_a_file_name_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    write(Path("afdc.toml"), text)
    with pytest.raises(UsageError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("run: [", "broken YAML"), ("- 1", "must hold a table")])
def test_broken_yaml(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        file_layer(write(tmp_path / "x.yaml", text))


def test_a_missing_config_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml: cannot be read: No such file"):
        load(tmp_path, file=Path("nowhere.toml"))


def test_faults_of_variables_and_flags_name_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="AFDC_TRAIN__RANK = 5"):
        load(tmp_path, AFDC_TRAIN__RANK="5")
    with pytest.raises(UsageError, match="AFDC_TRAIN__RANG: unknown option; did you mean 'rank'"):
        load(tmp_path, AFDC_TRAIN__RANG="8")
    with pytest.raises(UsageError, match="--threshold = 3"):
        load(tmp_path, RunFlags({}, {"--threshold": 3.0}).layer())
    with pytest.raises(UsageError, match=r"--set loop\.round: unknown option; did you mean 'rounds'"):
        load(tmp_path, sets=("loop.round=3",))
    with pytest.raises(UsageError, match=r"not of the form section\.key=value"):
        set_layer(["loop.rounds"])
    with pytest.raises(UsageError, match="select was set to a value before"):
        set_layer(["select=3", "select.threshold=0.1"])


def test_variables_of_others_are_left_alone() -> None:
    layer = env_layer({"AFDC_DEBUG": "1", "AFDC_CACHE": "/x", "PATH": "/bin", "AFDC_MODEL": "123"})
    assert layer.values == {"model": "123"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", 0.5), ("true", True), ("none", None), ("float32", "float32"), ('"8"', "8"), ("1_000", 1000), ("", "")],
)
def test_values(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_every_flag_reaches_its_option() -> None:
    given = {
        "--preset": "paper",
        "--model": "m",
        "--rounds": 4,
        "--augment-rounds": 2,
        "--variants": 5,
        "--threshold": 0.7,
        "--strategy": "margin",
        "--target-rows": 99,
        "--seed": 3,
    }
    assert set(given) == set(OPTION_KEYS)
    config = load_settings(RunFlags({}, given).layer(), environ={"XDG_CONFIG_HOME": "/nonexistent"}).config
    for flag, location in OPTION_KEYS.items():
        value: Any = config
        for part in location:
            value = getattr(value, part)
        assert value == given[flag], flag


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("augment.variants=1000000000", "less than or equal to 1000000"),
        ("augment.variants=99999999999999999999999", "less than or equal to 1000000"),
        ("augment.temperature=inf", "finite number"),
        ("augment.temperature=11", "less than or equal to 10"),
        ("train.learning_rate=1e300", "less than or equal to 1"),
        ("augment.min_mean_logprob=nan", "finite number"),
        ("engine.kv_cache_gib=inf", "--set engine.kv_cache_gib"),
        ("train.rank=true", "true and false have no meaning here"),
        ("loop.rounds=true", "true and false have no meaning here"),
        ('loop.rounds="3"', "a number belongs here, without quotes"),
        ("loop.ensemble=1", "a true or false belongs here"),
        ("loop=3", "a table of settings belongs here"),
        ("seed=" + "9" * 5000, "a number belongs here"),
        ("select.strategy=" + "[" * 20_000, "--set select.strategy"),
    ],
)
def test_a_value_that_no_run_can_use_is_refused(tmp_path: Path, assignment: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, sets=(assignment,))
    assert says in str(caught.value)
    assert len(str(caught.value)) < 400
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.yaml", "run:\n  seed: 1\n  seed: 2\n", "'seed' given twice"),
        ("a.yaml", "run:\n  seed: 2020-13-45\n", "cannot be read"),
        ("a.yaml", "run:\n  seed: " + "9" * 5000, "cannot be read"),
        ("a.yaml", "run: " + "[" * 5000, "cannot be read"),
        ("a.yaml", "run:\n  seed: !!bool x\n", "wrong kind"),
        ("a.yaml", "3: 1\nfoo: 2\n", "unknown key '3'"),
        ("a.yaml", "false", "must hold a table"),
        ("a.toml", "run = " + "[" * 20_000, "cannot be read"),
        ("a.toml", "[run]\nseed = " + "9" * 5000, "cannot be read"),
        ("a.toml", '[run]\nseeds = "a\\u0000b"', "NUL"),
        ("a.toml", '[run]\nseeds = "~nosuchuser/x"', "no home folder"),
    ],
)
def test_a_file_of_settings_that_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, file=write(tmp_path / name, text))
    assert says in str(caught.value)


def test_a_file_that_is_not_utf8_is_named_with_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes(b'[run]\nmodel = "\xe9"\n')
    with pytest.raises(UsageError, match=r"latin\.toml: not UTF-8 at byte 15"):
        load(tmp_path, file=path)

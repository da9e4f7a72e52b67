"""Where a run's settings come from: flag > AFDC_* > ./afdc.toml (or --config) > user config > default.

A settings file is TOML with a `[run]` table, or YAML with a `run:` mapping. It holds the options of RunConfig
(`[run.select] threshold = 0.8`) and the paths of the run (`seeds`, `task`, `out`, `eval`, `unlabeled`), which are
relative to the file. In the environment an option is AFDC_SECTION__KEY (AFDC_SELECT__THRESHOLD=0.8), or AFDC_KEY at the
top level. A `[server]` table (`url`, `api_key`) beside `[run]` says which server the remote commands ask.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from afdc.config import RunConfig
from afdc.errors import UsageError
from afdc.files import user_path
from afdc.presets import build_config
from afdc.setting_files import read_tables, setting_files

PATH_KEYS = ("seeds", "task", "out", "eval", "unlabeled")
ENV_PREFIX = "AFDC_"
SHOWN_CHARS = 80

Location = tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """Settings from one place. `origin` names the place of one key for messages: file and key, variable, or flag."""

    values: Mapping[str, Any]
    origin: Callable[[Location], str]
    paths: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """The resolved settings.

    Attributes:
        paths: those of PATH_KEYS that were given anywhere.
        given: the options that were given anywhere, without what preset and defaults add.
    """

    config: RunConfig
    paths: Mapping[str, Path]
    given: Mapping[str, Any] = field(default_factory=dict)


def load_settings(
    flags: Layer, assignments: Sequence[str] = (), file: Path | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Read every layer and merge them.

    Args:
        flags: what the command line said by name.
        assignments: `section.key=value` of --set; they count as flags.
        file: --config; read instead of ./afdc.toml.

    Raises:
        UsageError: a file that cannot be read, an unknown key or a bad value; names the file and the key.
    """
    environ = os.environ if environ is None else environ
    files = map(file_layer, setting_files(file, environ))
    layers = [*files, env_layer(environ), set_layer(assignments), flags]
    return merge_layers(layers)


def merge_layers(layers: Sequence[Layer]) -> Settings:
    """Later layers win. Every layer is checked by itself, so that a message names the place of the fault."""
    for layer in layers:
        _check_layer(layer)
    preset = next((str(layer.values["preset"]) for layer in reversed(layers) if "preset" in layer.values), "default")
    paths = {key: path for layer in layers for key, path in layer.paths.items()}
    config = build_config(preset, *(dict(layer.values) for layer in layers), {"preset": preset})
    given: dict[str, Any] = {}
    for layer in layers:
        for location, value in _leaves(layer.values):
            _put(given, location, value, layer.origin(location))
    return Settings(config, paths, given)


def file_layer(path: Path) -> Layer:
    """The layer of one TOML or YAML file.

    Raises:
        UsageError: missing, broken, or with tables or keys that have no meaning.
    """
    document = read_tables(path)
    run = document.get("run", {})
    if not isinstance(run, dict):
        raise UsageError(f"{path}: run must be a table", remedy="Put the options under [run], or run: in YAML")
    paths = {key: _file_path(path, key, run[key]) for key in PATH_KEYS if key in run}
    values = {key: value for key, value in run.items() if key not in PATH_KEYS}
    return Layer(values, lambda loc: f"{path}: {'.'.join(('run', *loc))}", paths)


def env_layer(environ: Mapping[str, str]) -> Layer:
    """The layer of AFDC_* variables. Variables that name neither an option nor a section are somebody else's."""
    values: dict[str, Any] = {}
    paths: dict[str, Path] = {}
    sections = [name for name, info in RunConfig.model_fields.items() if _is_section(info.annotation)]
    for name, text in sorted(environ.items()):
        if not name.startswith(ENV_PREFIX):
            continue
        location = tuple(name.removeprefix(ENV_PREFIX).lower().split("__"))
        if len(location) == 1 and location[0] in PATH_KEYS:
            paths[location[0]] = user_path(text)
        elif location[0] in sections or (len(location) == 1 and location[0] in RunConfig.model_fields):
            _put(values, location, text if location == ("model",) else parse_value(text), name)
    return Layer(values, lambda loc: ENV_PREFIX + "__".join(loc).upper(), paths)


def set_layer(assignments: Iterable[str]) -> Layer:
    """The layer of --set section.key=value.

    Raises:
        UsageError: an assignment without "=" or without a key.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        location = tuple(part.strip() for part in name.split("."))
        if not equals or not all(location):
            raise UsageError(f"--set {assignment}: not of the form section.key=value", remedy="For example: " + EXAMPLE)
        _put(values, location, text if location == ("model",) else parse_value(text), f"--set {name}")
    return Layer(values, lambda loc: f"--set {'.'.join(loc)}")


EXAMPLE = "--set select.per_label=200"


def parse_value(text: str) -> Any:
    """A TOML value where the text is one, None for "none" and "null", otherwise the text itself."""
    if text.strip().lower() in {"none", "null"}:
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # no TOML, a number of thousands of digits, or nested too deeply
        return text


def _file_path(file: Path, key: str, value: Any) -> Path:
    if not isinstance(value, str):
        raise UsageError(f"{file}: run.{key} must be a path in quotes", remedy=f'For example: {key} = "data/{key}"')
    return file.parent / user_path(value)


def _leaves(values: Mapping[str, Any], parents: Location = ()) -> Iterator[tuple[Location, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*parents, key))
        else:
            yield (*parents, key), value


def _put(values: dict[str, Any], location: Location, value: Any, origin: str) -> None:
    *parents, last = location
    for part in parents:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise UsageError(f"{origin}: {part} was set to a value before")
    values[last] = value


def _check_layer(layer: Layer) -> None:
    preset = layer.values.get("preset", "default")
    try:
        build_config(preset if isinstance(preset, str) else "default", dict(layer.values))
    except ValidationError as exc:
        raise UsageError(_explain(layer, exc), remedy="docs/configuration.md lists every option") from exc


def _explain(layer: Layer, exc: ValidationError) -> str:
    error = exc.errors()[0]
    location = tuple(str(part) for part in error["loc"])
    origin = layer.origin(location)
    if error["type"] != "extra_forbidden":
        return f"{origin} = {_short(error['input'])}: {error['msg'].removeprefix('Value error, ')}"
    known = _known_keys(location[:-1])
    close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.6)
    guess = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
    return f"{origin}: unknown option; {guess}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."


def _known_keys(location: Location) -> list[str]:
    model: Any = RunConfig
    for part in location:
        model = model.model_fields[part].annotation
    return list(model.model_fields)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)

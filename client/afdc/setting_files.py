"""The files of settings: `./afdc.toml` (or --config) and the user's own. What `[run]` says is for `afdc.settings`.

`[server]` (`url`, `api_key`) says which server the remote commands ask.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from afdc.errors import UsageError
from afdc.records import AS_UTF8
from afdc.tables import SettingsTable
from afdc.task import first_fault

PROJECT_FILE = "afdc.toml"
IGNORED_TABLES = {"made_by"}  # the provenance that `job.yaml` of a data set carries beside its run


class ServerTable(SettingsTable):
    """`[server]` of a settings file. The key goes to this address and to no other."""

    url: str = ""
    api_key: str = Field(default="", repr=False)


def user_config_path(environ: Mapping[str, str]) -> Path:
    """$XDG_CONFIG_HOME/afdc/config.toml, by default ~/.config/afdc/config.toml."""
    base = environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "afdc" / "config.toml"


def setting_files(file: Path | None, environ: Mapping[str, str]) -> list[Path]:
    """Those that there are, the user's first; `file` (--config) is one even if it is missing: reading it tells."""
    wanted = [(user_config_path(environ), False), (file or Path(PROJECT_FILE), file is not None)]
    return [path for path, required in wanted if required or path.is_file()]


def server_tables(file: Path | None, environ: Mapping[str, str]) -> list[tuple[Path, ServerTable]]:
    """`[server]` of every settings file, with the file; the one that wins comes first.

    Raises:
        UsageError: as `file_layer`. No message holds a key.
    """
    paths = reversed(setting_files(file, environ))
    return [(path, _server_table(path, read_tables(path))) for path in paths]


def _server_table(path: Path, document: Mapping[str, Any]) -> ServerTable:
    try:
        table = ServerTable.model_validate(document.get("server", {}))
    except ValidationError as exc:
        where, kind, message = first_fault(exc)
        told = "unknown key" if kind == "extra_forbidden" else message
        remedy = "[server] holds url and api_key, both in quotes"
        raise UsageError(f"{path}: {'.'.join(filter(None, ('server', where)))}: {told}", remedy=remedy) from exc
    if table.api_key and not table.url:
        remedy = "Write the url beside it: the key goes to that server alone"
        raise UsageError(f"{path}: server.api_key without server.url", remedy=remedy)
    return table


def read_tables(path: Path) -> dict[str, Any]:
    """The tables of a TOML or YAML file.

    Raises:
        UsageError: missing, broken, or with tables that have no meaning.
    """
    document = _parse_file(path)
    extra = sorted(map(str, set(document) - {"run", "server"} - IGNORED_TABLES))
    if extra:
        remedy = "Put the options of a run under [run]" + (" (YAML: under run:)" if path.suffix != ".toml" else "")
        raise UsageError(f"{path}: unknown key {extra[0]!r}", remedy=remedy)
    _server_table(path, document)
    return document


def _parse_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        document = tomllib.loads(text) if path.suffix == ".toml" else _parse_yaml(path, text)
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror}", remedy="Check the path") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path}: not UTF-8 at byte {exc.start} of the file", remedy=AS_UTF8) from exc
    except (ValueError, RecursionError) as exc:  # broken, nested too deeply, or a number of thousands of digits
        raise UsageError(f"{path}: cannot be read: {exc}", remedy="Correct the file") from exc
    if not isinstance(document, dict):
        raise UsageError(f"{path}: must hold a table of settings", remedy="Begin it with [run], or run: in YAML")
    return document


def _parse_yaml(path: Path, text: str) -> Any:
    try:
        import yaml  # an extra: TOML needs nothing
    except ImportError as exc:
        raise UsageError(f"{path}: YAML needs the package pyyaml", remedy="pip install pyyaml, or use TOML") from exc

    class UniqueKeys(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML ships no types
        """YAML allows a key once (1.2.2, 3.2.1.1); PyYAML takes the last one."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value:
                if str(key.value) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} given twice", key.start_mark)
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    try:
        document = yaml.load(text, UniqueKeys)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as exc:
        raise UsageError(f"{path}: broken YAML: {_yaml_fault(exc)}", remedy="Correct the file") from exc
    except (LookupError, AttributeError, TypeError) as exc:  # what PyYAML's constructors raise for a tag's wrong value
        raise UsageError(f"{path}: YAML with a value of the wrong kind: {exc}", remedy="Correct the file") from exc
    return {} if document is None else document


def _yaml_fault(exc: Any) -> str:
    """What and where, without the line itself: it may hold an API key."""
    mark = getattr(exc, "problem_mark", None)
    what = getattr(exc, "problem", None) or "it cannot be read"
    return f"{what} (line {mark.line + 1})" if mark else str(what)

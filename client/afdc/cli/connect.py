"""Which server a command asks, and with which key: flag > AFDC_SERVER > ./afdc.toml > user config > this machine.

A key goes where its owner has sent it and nowhere else. That of a settings file goes to the address beside it. That of
AFDC_API_KEY does not go to another machine that only ./afdc.toml names: the file may have come with somebody's
repository.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from afdc.errors import UsageError
from afdc.sdk.client import Client
from afdc.sdk.options import DEFAULT_RETRIES, DEFAULT_SERVER, DEFAULT_TIMEOUT_S, Options, resolve_options
from afdc.setting_files import ServerTable, server_tables, user_config_path

API_KEY, SERVER = "AFDC_API_KEY", "AFDC_SERVER"


@dataclass(frozen=True)
class ServerFlags:
    """The command line: None is a flag that was not given."""

    server: str | None = None
    config: Path | None = None


@dataclass(frozen=True)
class Place:
    """A server. `origin`: who named it; "" where nobody did, and it is the default."""

    url: str
    api_key: str = field(repr=False)
    origin: str

    def connect(self, *, timeout: float = DEFAULT_TIMEOUT_S, retries: int = DEFAULT_RETRIES) -> Client:
        """A client; close it, or use it as a context manager."""
        return Client(self.url, self.api_key, timeout=timeout, max_retries=retries)


def connect(flags: ServerFlags) -> Client:
    """A client of the server that the settings name.

    Raises:
        UsageError: an address, a key or a settings file that cannot be used.
    """
    return find_server(flags).connect()


def find_server(flags: ServerFlags, environ: Mapping[str, str] | None = None) -> Place:
    """The server, and the key that it may have.

    Raises:
        UsageError: an address or a settings file that cannot be used, or a key that only ./afdc.toml would send away.
    """
    environ = os.environ if environ is None else environ
    tables = server_tables(flags.config, environ)
    named = [(flags.server or "", "--server"), (environ.get(SERVER, ""), SERVER)]
    named += [(table.url, str(path)) for path, table in tables]
    url, origin = next(((url, origin) for url, origin in named if url), (DEFAULT_SERVER, ""))
    options = _resolve(url, origin)
    stored = next((table.api_key for _, table in tables if table.api_key and _same(table.url, options)), "")
    key = environ.get(API_KEY, "")
    if key and not options.is_local and not _is_trusted(origin, options, flags, tables, environ):
        if not stored:
            remedy = f"Set {SERVER} to it as well, or write it into {user_config_path(environ)}"
            raise UsageError(f"{API_KEY} is not sent to {options.server}, which only {origin} names", remedy=remedy)
        key = ""
    return Place(options.server, key or stored, origin)


def _resolve(url: str, origin: str) -> Options:
    try:
        return resolve_options(url, "", DEFAULT_TIMEOUT_S, DEFAULT_RETRIES, {})
    except UsageError as exc:
        raise UsageError(f"{origin}: {exc.message}", remedy=exc.remedy) from exc


def _same(url: str, options: Options) -> bool:
    try:
        return _resolve(url, "").server == options.server
    except UsageError:  # a file that does not win may hold what it likes
        return False


def _is_trusted(
    origin: str,
    options: Options,
    flags: ServerFlags,
    tables: list[tuple[Path, ServerTable]],
    environ: Mapping[str, str],
) -> bool:
    """Whether the user has named the server: all but a project file is the user's own."""
    own = user_config_path(environ)
    files = {str(path) for path, _ in tables if path not in {own, flags.config}}
    return origin not in files or any(path == own and _same(table.url, options) for path, table in tables)

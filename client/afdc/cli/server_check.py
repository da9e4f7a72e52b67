"""What `afdc doctor` says of the server: is it there, can it work, which version is it, does the key open it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from afdc.cli.connect import Place, ServerFlags, find_server
from afdc.cli.output import visible
from afdc.errors import AfdcError
from afdc.sdk.client import Client
from afdc.version import afdc_version

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Check:
    """One line: `ok` is False where a run, or a remote command, would fail."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def check_server(flags: ServerFlags) -> list[Check]:
    """Nothing where no server is configured. The checks that follow a failed one are left out."""
    try:
        place = find_server(flags)
        if not place.origin:
            return []
        with place.connect(timeout=TIMEOUT_S, retries=0) as client:
            return _checks(client, place)
    except AfdcError as exc:
        return [Check("server", False, exc.message, exc.remedy)]


def _checks(client: Client, place: Place) -> list[Check]:
    found = [_try("server", lambda: _version(client, place))]
    if found[0].ok:
        found += [_try("ready", lambda: _ready(client)), _try("key", lambda: _key(client, place))]
    return found


def _try(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except AfdcError as exc:
        return Check(name, False, exc.message, exc.remedy)


def _version(client: Client, place: Place) -> Check:
    client.health()
    version, ours = visible(client.version(), 40), afdc_version()
    differs = "" if version == ours else f", and this is {ours}"
    return Check("server", True, f"{place.url} ({place.origin}), version {version}{differs}")


def _ready(client: Client) -> Check:
    health = client.ready()
    told = ", ".join(f"{visible(name, 40)} {visible(str(state))}" for name, state in health.checks.items())
    ok = health.status == "ready"
    return Check("ready", ok, f"{visible(health.status, 40)}: {told}", "Look into the log of the server")


def _key(client: Client, place: Place) -> Check:
    """A list of one job is what the least of all keys may read."""
    if not place.api_key:
        return Check("key", False, "no key", "Set AFDC_API_KEY, or api_key beside the url under [server]")
    list(client.jobs.list(limit=1))
    return Check("key", True, "it opens the server")

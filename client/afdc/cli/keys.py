"""`afdc keys`: API keys of the server, for administrators."""

from __future__ import annotations

import sys
from typing import get_args

from afdc.cli.connect import ServerFlags, connect
from afdc.cli.output import data_console, local_time, message_console, print_json, print_table, visible
from afdc.errors import UsageError
from afdc.wire.keys import Key, Scope

SCOPES: tuple[Scope, ...] = get_args(Scope)
DEFAULT_SCOPES: tuple[Scope, ...] = ("read", "jobs")


def list_command(flags: ServerFlags, *, as_json: bool) -> None:
    """Body of `afdc keys list`: a table, or in a pipe a line a key with tabs in between."""
    with connect(flags) as client:
        keys = list(client.keys.list())
    if as_json:
        print_json([key.model_dump(mode="json") for key in keys])
    else:
        print_table(data_console(), [_row(key) for key in keys], "name")


def _row(key: Key) -> dict[str, str]:
    return {
        "key": visible(key.id),
        "tenant": visible(key.tenant, 64),
        "scopes": ",".join(key.scopes),
        "begins": visible(key.hint, 20),
        "created": local_time(key.created_at),
        "last used": local_time(key.last_used_at),
        "revoked": local_time(key.revoked_at),
        "name": visible(key.name),
    }


def create_command(flags: ServerFlags, name: str, scopes: tuple[str, ...], tenant: str, *, as_json: bool) -> None:
    """Body of `afdc keys create`: the only place where a key is printed.

    Raises:
        UsageError: a scope that there is not.
    """
    wanted = [scope for scope in SCOPES if scope in scopes] or DEFAULT_SCOPES
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown:
        raise UsageError(f"--scope {unknown[0][:40]!r} is none", remedy=f"Use {', '.join(SCOPES)}")
    with connect(flags) as client:
        made = client.keys.create(name, scopes=wanted, tenant=tenant)
    if as_json:
        print_json(made.model_dump(mode="json"))
        return
    sys.stdout.write(f"{visible(made.key, 500)}\n")
    sys.stdout.flush()
    told = f"{visible(made.id)} of tenant {visible(made.tenant, 64)}, scopes {', '.join(made.scopes)}"
    message_console().print(f"{told}. The key is shown this once: keep it now", soft_wrap=True)


def revoke_command(flags: ServerFlags, id: str, *, as_json: bool) -> None:
    """Body of `afdc keys revoke`."""
    with connect(flags) as client:
        gone = client.keys.revoke(id)
    if as_json:
        print_json(gone.model_dump(mode="json"))
    else:
        message_console().print(f"{visible(gone.id)} opens nothing any more", soft_wrap=True)

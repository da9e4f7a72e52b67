"""`afdc-server`: the command."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="afdc-server",
    help="AFDC as a service: an engine, a job runner and an HTTP API in one process.",
    epilog="Settings: flag > AFDC_SERVICE_* variable > ./afdc-server.toml > default. See docs/service.md.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Data = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Folder of everything that is kept.")]
Database = Annotated[str | None, typer.Option("--database-url", metavar="URL", help="postgresql://…; default: SQLite.")]
Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings (TOML).")]


@app.callback()
def root(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: any free one.")] = None,
    data: Data = None,
    database_url: Database = None,
    artifacts: Annotated[str | None, typer.Option(metavar="URL", help="s3://… or file://…")] = None,
    model: Annotated[str | None, typer.Option(metavar="M", help="Base model: a folder or a hub id.")] = None,
    config: Config = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="engine.*, limits.*, jobs.*."),
    ] = None,
) -> None:
    """Start the server."""
    if context.invoked_subcommand is not None:
        return
    flags = {
        "host": host,
        "port": port,
        "data": data,
        "database_url": database_url,
        "artifacts": artifacts,
        "model": model,
    }
    _settle(flags, set_ or [], config, _serve)


def _settle(flags: dict[str, Any], assignments: list[str], config: Path | None, body: Any) -> None:
    """Load the settings and run `body`; an error of ours is one line and an exit code."""
    from afdc.errors import AfdcError
    from afdc.settings import set_layer
    from afdc_server.service.settings import load_settings

    try:
        given = {name: value for name, value in flags.items() if value is not None}
        body(load_settings({**set_layer(assignments).values, **given}, config))
    except AfdcError as exc:
        typer.echo(f"afdc-server: {exc}", err=True)
        raise typer.Exit(exc.exit_code) from exc


def _serve(settings: Any) -> None:
    from afdc_server.service import startup
    from afdc_server.service.serve import configure_logging, serve
    from afdc_server.service.wiring import first_key, make_services, real_parts

    configure_logging(settings)
    startup.check_disk(settings)
    with startup.bind(settings) as listener:
        startup.raise_file_limit()
        startup.check_model(settings)
        services = make_services(settings, real_parts(settings))
        host, port = listener.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

        def answers() -> None:
            _say(f"AFDC answers on {address}  (docs: {address}/docs)")

        def ready() -> None:
            if (key := first_key(services)) is not None:
                _say(f"API key, shown this once: {key}\n  export AFDC_SERVER={address} AFDC_API_KEY={key}")

        serve(services, listener, answers, ready)


def _say(text: str) -> None:
    typer.echo(text)
    sys.stdout.flush()


@app.command("create-key")
def create_key(
    data: Data = None,
    database_url: Database = None,
    config: Config = None,
    tenant: Annotated[str, typer.Option(help="Whose key it is; a new name makes a new tenant.")] = "default",
    scope: Annotated[list[str] | None, typer.Option(help="read, jobs, admin; repeatable.")] = None,
    name: Annotated[str, typer.Option(help="To tell it from others.")] = "",
) -> None:
    """Make an API key without a running server, and print it."""

    def body(settings: Any) -> None:
        from afdc.sdk.core import checked
        from afdc.wire.keys import KeyCreate
        from afdc_server.accounts.keys import load_secret
        from afdc_server.accounts.store import DEFAULT_TENANT
        from afdc_server.accounts.store import create_key as create

        wanted = checked(KeyCreate, tenant=tenant, scopes=scope or ["read", "jobs"], name=name)
        with _writing(settings) as connection:
            secret, tenant_name = load_secret(settings.secret_path), wanted.tenant or DEFAULT_TENANT
            _, key = create(connection, secret, tenant_name, wanted.scopes, wanted.name)
        typer.echo(key)

    _settle({"data": data, "database_url": database_url}, [], config, body)


@app.command("set-limits")
def set_limits(
    limits: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="VALUE none: the server's limit again.")
    ] = None,
    data: Data = None,
    database_url: Database = None,
    config: Config = None,
    tenant: Annotated[str, typer.Option(help="Whose limits; a new name makes a new tenant.")] = "default",
) -> None:
    """Change a tenant's own limits, and print those that it has. A running server obeys them within a second.

    Names: those of docs/service.md, Tenants and keys.
    """

    def body(settings: Any) -> None:
        from afdc.sdk.core import checked
        from afdc.wire.keys import KeyCreate
        from afdc.wire.tenants import TenantLimits
        from afdc_server.accounts.limits import own_limits
        from afdc_server.accounts.limits import set_limits as keep

        name = checked(KeyCreate, tenant=tenant).tenant or "default"
        changed = _assigned(limits or [])
        with _writing(settings) as connection:
            wanted = checked(TenantLimits, **{**own_limits(connection, name), **changed})
            if changed:
                keep(connection, name, wanted)
        for key, value in wanted.model_dump(exclude_none=True).items():
            typer.echo(f"{key}={value}")

    _settle({"data": data, "database_url": database_url}, [], config, body)


def _assigned(limits: list[str]) -> dict[str, Any]:
    """Of NAME=VALUE; the values are checked with the rest."""
    from afdc.errors import UsageError

    pairs = [one.partition("=") for one in limits]
    wrong = next((name for name, sign, _ in pairs if not sign), None)
    if wrong is not None:
        raise UsageError(f"{wrong[:80]!r} has no value", remedy="Write NAME=VALUE, for example tenant_tokens=50000000")
    return {name: None if value == "none" else value for name, _, value in pairs}


@contextmanager
def _writing(settings: Any) -> Iterator[Any]:
    """A transaction of the server's database, which is brought up to date first."""
    from afdc_server.db.database import Database
    from afdc_server.db.migrate import upgrade
    from afdc_server.db.open import open_database
    from afdc_server.service.startup import check_disk

    check_disk(settings)
    with closing(Database(open_database(settings.database))) as database:
        upgrade(database.engine)
        with database.write() as connection:
            yield connection


def main() -> None:
    """Entry point. A thread that still answers a request holds nothing up: what counts is on disk."""
    try:
        app()
    except SystemExit as exc:
        if all(thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exc.code if isinstance(exc.code, int) else 1)


if __name__ == "__main__":
    main()

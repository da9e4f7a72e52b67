"""Bring a database up to the newest schema (alembic), or say that it is newer than this program."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Engine

from afdc.errors import StorageError
from afdc_server.db.open import translated

SCRIPTS = Path(__file__).with_name("migrations")
LOCK = 0x61666463  # of PostgreSQL's advisory locks: two servers that start at once migrate one after the other


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Run the missing migrations, each in a transaction.

    Raises:
        StorageError: the database cannot be changed, or was made by a newer version.
    """
    config, found = _config(), None
    try:
        with translated("brought up to date", "database"), engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("SET LOCAL lock_timeout = 0")  # another server may migrate for long
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
            config.attributes["connection"] = connection
            found = MigrationContext.configure(connection).get_current_revision()
            command.upgrade(config, revision)
    except CommandError as exc:  # a revision that is not among the scripts
        raise StorageError(
            "the database was written by a newer version of AFDC "
            f"(its revision is {found}, and {newest()} is the newest here)",
            remedy="Use that version, or restore the backup that was made before the upgrade; see docs/operations.md",
        ) from exc


def newest() -> str:
    """The newest revision."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    return config

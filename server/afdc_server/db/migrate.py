"""Bring a database up to the newest schema (alembic), or say that it is newer than this program."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
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
    config = _config()
    try:
        with translated("brought up to date", "database"), engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("SET LOCAL lock_timeout = 0")  # another server may migrate for long
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    except CommandError as exc:
        raise StorageError(
            f"the database has another history than this version knows: {exc}",
            remedy="Use the version of AFDC that wrote it, or a newer one; see docs/operations.md",
        ) from exc


def newest() -> str:
    """The newest revision."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    return config

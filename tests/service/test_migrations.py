"""Databases of earlier versions, with a job under way in them, and of later ones."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import Engine, inspect, text
from typer.testing import CliRunner

from afdc_server.db.database import Database
from afdc_server.db.migrate import newest, upgrade
from afdc_server.db.open import open_database
from afdc_server.ledger.events import read_events
from afdc_server.service.main import app
from tests.service.cluster import database_url
from tests.service.faults import JOB, REPOSITORY, Outcome, examine, find_job

KINDS = ("sqlite", "postgresql")
UNDO = {"0002": ("ALTER TABLE tenants DROP COLUMN spent_tokens",)}
"""What takes a revision back, the newest first."""
KILLED_AT = 150


def run_server(root: Path, url: str, *more: str) -> subprocess.CompletedProcess[str]:
    """The server with the one job, to its end or to the kill."""
    command = [
        sys.executable,
        "-m",
        "tests.service.faults",
        str(root),
        *(["--database-url", url] if url else []),
        *more,
    ]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def columns_of(engine: Engine) -> dict[str, set[str]]:
    found = inspect(engine)
    return {table: {str(one["name"]) for one in found.get_columns(table)} for table in found.get_table_names()}


def take_back(engine: Engine, fresh: Engine, undo: Sequence[str]) -> None:
    """Make the database one of revision 0001, with everything that is in it."""
    with engine.begin() as connection:
        for statement in undo:
            connection.execute(text(statement))
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    upgrade(fresh, "0001")
    assert columns_of(engine) == columns_of(fresh), "UNDO lacks what a later revision has changed"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    root = tmp_path_factory.mktemp("undisturbed")
    done = run_server(root, "")
    assert done.returncode == 0, done.stderr[-4000:]
    return examine(root)


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_of_the_first_revision_goes_on_where_it_was(tmp_path: Path, kind: str, undisturbed: Outcome) -> None:
    url = database_url(kind, tmp_path) if kind == "postgresql" else ""
    root = tmp_path / "data"
    assert run_server(root, url, "--kill-at", str(KILLED_AT)).returncode == -signal.SIGKILL
    database = Database(open_database(url or f"sqlite:///{root / 'afdc.db'}"))
    fresh = open_database(database_url(kind, tmp_path))
    take_back(database.engine, fresh, [one for revision in sorted(UNDO, reverse=True) for one in UNDO[revision]])
    assert find_job(database).status == "running"
    with database.read() as connection:
        before = read_events(connection, JOB)
    assert any(event.kind == "stage_finished" for event in before)

    done = run_server(root, url)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout)["status"] == "succeeded"
    assert examine(root, url) == undisturbed
    with database.read() as connection:
        after = read_events(connection, JOB)
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == newest()
    assert after[: len(before)] == before
    assert "job_restarted" not in [event.kind for event in after]
    database.close()
    fresh.dispose()


@pytest.mark.parametrize("kind", KINDS)
def test_a_database_of_a_newer_version_is_refused_and_left_alone(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = database_url(kind, tmp_path)
    engine = open_database(url)
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE tenants ADD COLUMN of_the_future INTEGER"))
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    before = columns_of(engine)
    for command in (["create-key"], ["--port", "0"]):
        refused = CliRunner().invoke(app, [*command, "--data", "data", "--database-url", url])
        assert refused.exit_code == 6
        assert f"newer version of AFDC (its revision is 9999, and {newest()} is the newest here)" in refused.stderr
        assert "restore the backup" in refused.stderr
    assert columns_of(engine) == before
    engine.dispose()

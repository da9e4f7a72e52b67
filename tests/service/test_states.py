"""The states of a job: the table itself, and what the database makes of it under many hands."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from afdc.errors import ConflictError
from afdc.wire.jobs import TERMINAL, JobStatus
from afdc_server.db.database import Database
from afdc_server.db.migrate import upgrade
from afdc_server.db.open import open_database
from afdc_server.db.schema import service_jobs
from afdc_server.jobs import store
from afdc_server.jobs.states import ACTIVE, MOVES, STOPPING, Action, StateError, move
from afdc_server.ledger import FencedError, SqlLedger
from afdc_server.ledger.events import raise_fence, read_events
from tests.service.cluster import database_url

STATES = get_args(JobStatus)
ACTIONS = get_args(Action)
EVENTS = {state: f"job_{state}" for state in STATES}
JOB = "job_1"

some_actions = st.lists(st.sampled_from(ACTIONS), max_size=60)


def walk(actions: list[Action]) -> list[tuple[str, Action, str]]:
    """The moves that a new job makes under these actions, without those that are refused."""
    state, made = "queued", []
    for action in actions:
        try:
            after = move(state, action)
        except StateError:
            continue
        made.append((state, action, after))
        state = after
    return made


@given(some_actions)
def test_no_sequence_of_actions_leaves_the_table(actions: list[Action]) -> None:
    for before, action, after in walk(actions):
        assert after in STATES
        assert MOVES[action][before] == after


@given(some_actions)
def test_only_retry_leads_out_of_an_end(actions: list[Action]) -> None:
    for before, action, after in walk(actions):
        if before in TERMINAL and after != before:
            assert (action, after) == ("retry", "queued")
            assert before != "succeeded"


@given(some_actions)
def test_a_job_succeeds_only_after_it_was_claimed_and_exported(actions: list[Action]) -> None:
    made = walk(actions)
    for place, (_, action, after) in enumerate(made):
        if after == "succeeded":
            assert action == "finish"
            latest = [one for _, one, changed in made[:place] if one in {"claim", "export"} or changed == "queued"]
            assert "claim" in latest
            assert latest[-1] == "export"


@pytest.mark.parametrize("state", STATES)
def test_every_state_is_reached_and_every_open_one_has_a_way_to_an_end(state: str) -> None:
    reached = {"queued"}
    while more := {to for moves in MOVES.values() for start, to in moves.items() if start in reached} - reached:
        reached |= more
    assert state in reached
    ends = {state}
    while not ends & TERMINAL:
        ends |= {to for moves in MOVES.values() for start, to in moves.items() if start in ends}


def test_whoever_loses_a_worker_is_free_again() -> None:
    assert set(MOVES["release"]) == set(MOVES["stopped"]) == ACTIVE
    assert not {*MOVES["release"].values(), *MOVES["stopped"].values()} & ACTIVE
    assert STOPPING < ACTIVE
    assert set(MOVES["fail"]) == ACTIVE


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    found = Database(open_database(database_url(request.param, tmp_path)))
    upgrade(found.engine)
    yield found
    found.close()


def put_job(database: Database, id: str = JOB) -> None:
    values: dict[str, Any] = {"id": id, "tenant": "t", "name": "", "request": {}, "config": {}, "config_hash": ""}
    with database.write() as connection:
        store.create(connection, {**values, "model": "m", "model_revision": "r", "engine": "e"})


def kinds(database: Database) -> list[str]:
    with database.read() as connection:
        events = read_events(connection, JOB)
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    return [event.kind for event in events]


def test_each_move_is_stored_with_its_event_and_a_refused_one_with_nothing(database: Database) -> None:
    put_job(database)
    state, told, version = "queued", ["job_queued"], 1
    for action in [*ACTIONS, *reversed(ACTIONS), "retry", "claim", "pause", "stopped", "resume", "claim", "export"]:
        try:
            after = move(state, action)
        except StateError:
            with pytest.raises(StateError), database.write() as connection:
                store.act(connection, JOB, action, stage="never stored")
        else:
            with database.write() as connection:
                assert store.act(connection, JOB, action) == after
            if after != state:
                told.append(EVENTS[after])
                version += 1
            state = after
        with database.read() as connection:
            row = store.get(connection, "t", JOB)
        assert (row.status, row.version, row.stage) == (state, version, "")
        assert (row.finished_at is not None) == (state in TERMINAL)
    assert kinds(database) == told


def test_many_hands_at_once_make_one_of_several_possible_histories(database: Database) -> None:
    put_job(database)
    given_up: list[Exception] = []

    def steer(number: int) -> None:
        for turn in range(12):
            action = ACTIONS[(number * 5 + turn * 7) % len(ACTIONS)]
            try:
                with database.write() as connection:
                    store.act(connection, JOB, action)
            except StateError:
                continue
            except Exception as exc:
                given_up.append(exc)

    threads = [threading.Thread(target=steer, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not given_up
    told = kinds(database)
    reached = {event: state for state, event in EVENTS.items()}
    for before, after in itertools.pairwise(told):
        assert any(moves.get(reached[before]) == reached[after] for moves in MOVES.values()), (before, after)
    with database.read() as connection:
        row = store.get(connection, "t", JOB)
    assert (row.status, row.version) == (reached[told[-1]], len(told))


def test_whoever_raises_the_fence_shuts_the_others_out(database: Database) -> None:
    put_job(database)
    with database.write() as connection:
        first = SqlLedger(database.engine, JOB, raise_fence(connection, JOB))
    first.add_event("note", {})
    with database.write() as connection:
        second = SqlLedger(database.engine, JOB, raise_fence(connection, JOB))
    with pytest.raises(FencedError):
        first.add_event("note", {})
    with pytest.raises(ConflictError):
        first.set_value("key", 1)
    with pytest.raises(FencedError), first.transaction() as connection:
        store.act(connection, JOB, "cancel")
    second.add_event("note", {})
    assert kinds(database) == ["job_queued", "note", "note"]


def test_a_fence_that_is_rolled_back_shuts_nobody_out(database: Database) -> None:
    put_job(database)
    ledger = SqlLedger(database.engine, JOB)
    with database.write() as connection:
        raise_fence(connection, JOB)
        connection.rollback()
    ledger.add_event("note", {})


def test_what_is_forgotten_leaves_the_events_and_other_jobs(database: Database) -> None:
    put_job(database)
    put_job(database, "job_2")
    ledger, other = SqlLedger(database.engine, JOB), SqlLedger(database.engine, "job_2")
    ledger.set_value("a", 1)
    other.set_value("a", 2)
    ledger.forget("its files are gone")
    assert (ledger.get_value("a"), other.get_value("a")) == (None, 2)
    assert kinds(database) == ["job_queued", "job_restarted"]


def test_starts_in_vain_are_counted_from_the_last_finished_stage(database: Database) -> None:
    put_job(database)
    ledger = SqlLedger(database.engine, JOB)
    for kind in ("job_running", "stage_finished", "job_running", "job_queued", "job_running"):
        ledger.add_event(kind, {})
    with database.read() as connection:
        assert store.starts_in_vain(connection, JOB) == 2
        assert store.starts_in_vain(connection, "job_none") == 0
        assert connection.execute(select(service_jobs.c.id)).scalar() == JOB

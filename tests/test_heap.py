"""The garbage collector of a server: long pauses go, garbage does not stay."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from afdc_server.heap import THAW_EVERY_S, calm_collection


class Node:
    """A cycle of one."""

    def __init__(self) -> None:
        self.me = self


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    with calm_collection(clock):
        yield clock


def test_a_full_collection_freezes_what_survives_it(clock: Clock) -> None:
    kept = [[] for _ in range(10_000)]
    before = gc.get_freeze_count()
    gc.collect()
    assert gc.get_freeze_count() - before >= len(kept)


def test_cycles_die_at_once_while_they_are_new(clock: Clock) -> None:
    node = Node()
    found = weakref.ref(node)
    del node
    gc.collect()
    assert found() is None


def test_frozen_cycles_die_within_the_hour(clock: Clock) -> None:
    node = Node()
    found = weakref.ref(node)
    gc.collect()
    del node
    gc.collect()
    assert found() is not None
    clock.now = THAW_EVERY_S
    gc.collect()
    assert found() is None


def test_the_end_gives_everything_back() -> None:
    before = len(gc.callbacks)
    with calm_collection():
        assert len(gc.callbacks) == before + 1
    assert len(gc.callbacks) == before
    assert gc.get_freeze_count() == 0

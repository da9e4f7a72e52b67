"""One fake-engine server for the tests that do not disturb it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.service.world import World, running


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("service")) as found:
        yield found


@pytest.fixture
def client(world: World) -> Iterator[httpx.Client]:
    with world.client() as found:
        yield found

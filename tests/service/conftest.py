"""One fake-engine server for the tests that do not disturb it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import httpx
import pytest
import structlog

from afdc_server.service.serve import FORWARDED
from tests.service.world import World, running


@pytest.fixture(autouse=True)
def logs() -> Iterator[None]:
    """What a command has set up logs to its own stderr, which is closed behind the test that ran it."""
    yield
    structlog.reset_defaults()
    for name in FORWARDED:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("service")) as found:
        yield found


@pytest.fixture
def client(world: World) -> Iterator[httpx.Client]:
    with world.client() as found:
        yield found

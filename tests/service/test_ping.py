"""A stream without news is kept alive."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from afdc_server.api import events as api_events
from tests.service.world import SlottedEngine, World, fake_parts, make_settings, post_job, post_seeds


def test_an_idle_stream_is_pinged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert api_events.PING_S == 15.0
    monkeypatch.setattr(api_events, "PING_S", 0.2)
    world = World(make_settings(tmp_path), fake_parts(SlottedEngine()))
    world.start(with_runner=False)  # the job stays where it is, and has nothing to tell
    try:
        with world.client() as client:
            path = f"/jobs/{post_job(client, post_seeds(client))['id']}/events"
            with client.stream("GET", path, headers={"Accept": "text/event-stream"}) as reply:
                begun, lines = time.monotonic(), reply.iter_lines()
                found = list(itertools.islice((line for line in lines if line.startswith(":")), 3))
                assert 0.4 < time.monotonic() - begun < 10
        assert found == [": ping"] * 3
    finally:
        world.stop()

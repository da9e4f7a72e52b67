"""The real command against a real server over the fake engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from afdc.cli import main
from tests.cli.remote_world import Outcome, Remote, write_inputs
from tests.service.world import CLEAR, SlottedEngine, World, running


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("service"), SlottedEngine(noise=CLEAR)) as found:
        yield found


@pytest.fixture(scope="module")
def key(world: World) -> str:
    return world.key()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and working folder with the files of a small job."""
    for name in [name for name in os.environ if name.startswith("AFDC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("AFDC_CACHE", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    write_inputs(work)
    return work


@pytest.fixture
def remote(
    folder: Path, world: World, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Remote:
    """The program in this process, pointed at the server."""
    monkeypatch.setenv("AFDC_SERVER", world.address)
    monkeypatch.setenv("AFDC_API_KEY", key)

    def call(*args: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["afdc", *args])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        assert key not in out + err
        return caught.value.code, out, err

    return call

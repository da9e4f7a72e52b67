"""What a start of the engine does to this process, and that nothing of it stays."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import spawn
from pathlib import Path

import pytest

from afdc.engine_config import EngineConfig
from afdc_server.engine.environment import LOGGING_FILE, engine_environment, engine_launch
from afdc_server.engine.settings import resolve_settings

SPACE, LOGGING = "VLLM_CPU_KVCACHE_SPACE", "VLLM_LOGGING_CONFIG_PATH"


def test_each_engine_gets_its_own_environment_and_leaves_none(tmp_path: Path) -> None:
    before = dict(os.environ)
    for gib in (3, 5):
        settings = resolve_settings(EngineConfig(kv_cache_gib=gib), 512, "cpu")
        logs = tmp_path / str(gib)
        with engine_environment(settings, logs):
            assert os.environ[SPACE] == str(gib)
            assert os.environ[LOGGING] == str(logs / LOGGING_FILE)
        assert dict(os.environ) == before
    with engine_environment(resolve_settings(EngineConfig(), 512, "cuda"), tmp_path):
        assert SPACE not in os.environ


def test_what_the_user_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SPACE, "9")
    with engine_environment(resolve_settings(EngineConfig(), 512, "cpu"), tmp_path):
        assert os.environ[SPACE] == "9"
    assert os.environ[SPACE] == "9"


def test_a_failed_launch_puts_everything_back(tmp_path: Path) -> None:
    before, executable = dict(os.environ), spawn.get_executable()
    children = multiprocessing.active_children()  # the session's engine is one

    def fail() -> None:
        assert spawn.get_executable() != executable
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"), engine_launch(resolve_settings(EngineConfig(), 512, "cpu"), tmp_path):
        fail()
    assert dict(os.environ) == before
    assert spawn.get_executable() == executable
    assert multiprocessing.active_children() == children

"""`afdc-server` before its first request: what it refuses, in which words, and that no key is spent on it."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from afdc.errors import EngineDiedError
from afdc_pipeline.seams import EngineInfo
from afdc_server.gpu import GIB, GpuMemory, memory_fault, visible_memory
from afdc_server.service import main, startup, wiring
from tests.fakes.engine import FakeEngine
from tests.service.world import SlottedEngine, fake_parts, running, wait_for

LISTING = "0, GPU-aaaa-1, 1000, 2000\n1, GPU-bbbb-2, 3000, 4000\n2, GPU-cccc-3, [N/A], [N/A]\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and no settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("AFDC_SERVICE_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def taken() -> Iterator[list[int]]:
    """Three ports that are in use."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    yield [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()


def start(*arguments: str) -> Result:
    return CliRunner().invoke(main.app, list(arguments))


def make_key(*arguments: str) -> str:
    made = start("create-key", *arguments)
    assert made.exit_code == 0, made.output
    return made.stdout.strip()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_a_flag_goes_before_the_environment_and_that_before_the_file(
    folder: Path, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told by the port that it complains of."""
    (folder / "afdc-server.toml").write_text(f"port = {taken[0]}\n")
    file = start()
    monkeypatch.setenv("AFDC_SERVICE_PORT", str(taken[1]))
    environment = start()
    flag = start("--port", str(taken[2]))
    for found, port in zip((file, environment, flag), taken, strict=True):
        assert found.exit_code == 2
        assert f"cannot listen on 127.0.0.1:{port}" in found.stderr
        assert "--port" in found.stderr


def test_limits_have_the_same_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "afdc-server.toml").write_text("[limits]\nstreams = -1\n")
    monkeypatch.setenv("AFDC_SERVICE_LIMITS__STREAMS", "-2")
    assert "limits.streams" in start().stderr
    monkeypatch.setenv("AFDC_SERVICE_LIMITS__STREAMS", "7")
    passed = start("--model", "no-such-folder", "--port", "0")
    assert "limits.streams" not in passed.stderr
    assert start("--set", "limits.streams=-3").exit_code == 2


def test_a_folder_that_cannot_be_used(folder: Path) -> None:
    (folder / "file").write_text("")
    found = start("--data", "file/data", "--port", "0")
    assert found.exit_code == 6
    assert "cannot use file/data" in found.stderr
    assert "--data" in found.stderr


def test_a_disk_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "MIN_FREE_BYTES", 1 << 60)
    for found in (start("--port", "0"), start("create-key")):
        assert found.exit_code == 6
        assert "GiB free" in found.stderr


@pytest.mark.parametrize("model", ["no-such-folder", "empty"])
def test_a_model_that_is_none_is_told_before_anything_is_made(folder: Path, model: str) -> None:
    (folder / "empty").mkdir()
    found = start("--model", model, "--port", "0")
    assert found.exit_code == 5
    assert model in found.stderr
    assert "API key" not in found.output
    assert not (folder / "afdc-data" / "afdc.db").exists()


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--artifacts", "nothing://x"), 2, "nothing://x"),
        (("--database-url", "mysql://h/none"), 2, "not supported"),
        (("--set", "engine.nothing=1"), 2, "engine.nothing"),
        (("--config", "absent.toml"), 2, "absent.toml"),
    ],
)
def test_settings_that_cannot_be_used(flags: tuple[str, ...], code: int, said: str) -> None:
    found = start("--port", "0", *flags)
    assert found.exit_code == code, found.output
    assert said in found.stderr
    assert "API key" not in found.output


def test_no_other_machine_reaches_a_server_without_a_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "real_parts", lambda _settings: fake_parts(Broken()))
    monkeypatch.setattr(startup, "local_model", lambda *_: None)
    refused = start("--host", "0.0.0.0", "--port", "0")  # noqa: S104 - what is refused
    assert refused.exit_code == 2
    assert "create-key" in refused.stderr
    make_key()
    passed = start("--host", "0.0.0.0", "--port", "0")  # noqa: S104 - as above
    assert "create-key" not in passed.stderr
    assert "it does not start" in passed.stderr


class Broken(SlottedEngine):
    async def start(self) -> EngineInfo:
        raise EngineDiedError("it does not start")


def serve_until_ready(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine) -> Result:
    """The command over a fake engine, ended by SIGTERM once it is ready."""
    monkeypatch.setattr(wiring, "real_parts", lambda _settings: fake_parts(engine))
    monkeypatch.setattr(startup, "local_model", lambda *_: None)
    port = free_port()

    def is_ready() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def end() -> None:
        wait_for(is_ready)
        threading.Event().wait(0.2)  # the key is told a moment after the engine is there
        os.kill(os.getpid(), signal.SIGTERM)

    ending = threading.Thread(target=end, daemon=True)
    if not isinstance(engine, Broken):
        ending.start()
    return start("--port", str(port))


def test_the_first_key_is_made_once_the_engine_has_started(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    failed = serve_until_ready(monkeypatch, Broken())
    assert failed.exit_code == 6
    assert "API key" not in failed.output
    first = serve_until_ready(monkeypatch, SlottedEngine())
    assert first.exit_code == 0, first.output
    assert "API key, shown this once: afdc_" in first.stdout
    second = serve_until_ready(monkeypatch, SlottedEngine())
    assert second.exit_code == 0
    assert "API key" not in second.output
    key = first.stdout.rpartition("AFDC_API_KEY=")[2].strip()
    assert status_of(folder, key, "/keys") == 200


def status_of(folder: Path, key: str, path: str) -> int:
    """What a server on the data folder answers to the key."""
    with running(folder / "afdc-data") as world:
        return httpx.get(f"{world.address}/v1{path}", headers={"Authorization": f"Bearer {key}"}).status_code


def test_create_key(folder: Path) -> None:
    reader = make_key("--tenant", "vision", "--scope", "read", "--name", "ci")
    admin = make_key("--scope", "admin")
    assert (status_of(folder, reader, "/jobs"), status_of(folder, reader, "/keys")) == (200, 403)
    assert status_of(folder, admin, "/keys") == 200
    assert start("create-key", "--scope", "everything").exit_code == 5
    assert start("create-key", "--tenant", "No Name").exit_code == 5
    assert status_of(folder, make_key("--tenant", ""), "/jobs") == 200


@pytest.mark.parametrize(
    ("gpus", "weights", "share", "count", "said"),
    [
        ([(80, 80)], 8, 0.45, 1, ""),
        ([(30, 80)], 8, 0.45, 1, "30.0 of 80.0 GiB of the GPU are free, and the engine takes 36.0 GiB"),
        ([(80, 80)], 40, 0.45, 1, "40.0 GiB of weights a GPU do not fit into the engine's 36.0 of 80.0 GiB"),
        ([(80, 80), (80, 80)], 40, 0.45, 2, ""),
        ([(10, 80), (80, 80)], 8, 0.45, 1, ""),
        ([(10, 80), (80, 80)], 8, 0.45, 2, "10.0 of 80.0 GiB"),
        ([(36, 80)], 0, 0.45, 1, ""),
        ([], 400, 0.45, 1, ""),
    ],
)
def test_the_gpus_memory(gpus: list[tuple[int, int]], weights: int, share: float, count: int, said: str) -> None:
    found = memory_fault([GpuMemory(free * GIB, total * GIB) for free, total in gpus], weights * GIB, share, count)
    assert (said in found) if said else not found


def test_the_memory_of_visible_gpus_counts() -> None:
    def free(**environ: str) -> list[int]:
        return [gpu.free >> 20 for gpu in visible_memory(LISTING, environ)]

    assert free() == [1000, 3000]
    assert free(CUDA_VISIBLE_DEVICES="GPU-bbbb") == [3000]
    assert free(CUDA_VISIBLE_DEVICES="0", CUDA_DEVICE_ORDER="PCI_BUS_ID") == [1000]
    assert free(CUDA_VISIBLE_DEVICES="0") == free(CUDA_VISIBLE_DEVICES="MIG-1") == []
    assert visible_memory("", {}) == []


def test_a_gpu_without_room_is_told_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "detect_device", lambda *_: "cuda")
    monkeypatch.setattr(startup, "gpu_memory", lambda: [GpuMemory(GIB, 80 * GIB)])
    found = start("--port", "0", "--model", "owner/name")
    assert found.exit_code == 6
    assert "1.0 of 80.0 GiB of the GPU are free" in found.stderr
    assert "engine.gpu_memory_utilization" in found.stderr

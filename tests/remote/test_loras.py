"""Adapters on a server: loaded, checked, lost and loaded again, refused with a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from afdc.errors import AdapterError
from tests.fakes.served import TASK, write_adapter
from tests.remote.canned import CannedServer
from tests.remote.conftest import Connect

BASE, TUNED = [-97.0, -98.0], [-48.5, -49.0]


async def test_an_adapter_lives_from_load_to_unload(server: CannedServer, connect: Connect, tmp_path: Path) -> None:
    async with connect(server) as engine:
        write_adapter(tmp_path / "a", engine)
        await engine.load_adapter(tmp_path / "a")
        assert server.adapters == {"a": str(tmp_path / "a")}
        tuned, base = [(await engine.score(["x"], TASK, name)).logprobs[0].tolist() for name in ("a", None)]
        await engine.unload_adapter("a")
    assert (tuned, base) == (TUNED, BASE)
    assert not server.adapters


async def test_leaving_takes_our_adapters_along(server: CannedServer, connect: Connect, tmp_path: Path) -> None:
    async with connect(server) as engine:
        write_adapter(tmp_path / "a", engine)
        await engine.load_adapter(tmp_path / "a")
    assert not server.adapters


async def test_a_restarted_server_gets_them_back(server: CannedServer, connect: Connect, tmp_path: Path) -> None:
    async with connect(server) as engine:
        write_adapter(tmp_path / "a", engine)
        await engine.load_adapter(tmp_path / "a")
        await server.down()
        await server.up()
        assert not server.adapters
        scores = await engine.score(["x", "y"], TASK, "a")
    assert scores.logprobs.tolist() == [TUNED, TUNED]


async def test_one_left_by_an_earlier_run_is_taken_over(server: CannedServer, connect: Connect, tmp_path: Path) -> None:
    async with connect(server) as engine:
        write_adapter(tmp_path / "a", engine)
        server.adapters["a"] = str(tmp_path / "a")
        await engine.load_adapter(tmp_path / "a")
        assert (await engine.score(["x"], TASK, "a")).logprobs[0].tolist() == TUNED


async def test_an_adapter_that_a_killed_process_left_from_elsewhere_is_loaded_anew(
    server: CannedServer, connect: Connect, tmp_path: Path
) -> None:
    async with connect(server) as engine:
        write_adapter(tmp_path / "a", engine)
        server.adapters["a"] = "/another/folder"
        await engine.load_adapter(tmp_path / "a")
        assert server.adapters["a"] == str(tmp_path / "a")
        assert (await engine.score(["x"], TASK, "a")).logprobs[0].tolist() == TUNED


@pytest.mark.parametrize(
    ("cue", "reason"),
    [
        ({"allows_loras": False}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        ({"lora_failure": "LoRA is not enabled. Use --enable-lora to enable LoRA."}, "--max-lora-rank"),
        ({"lora_failure": "LoRA rank 64 is greater than max_lora_rank 16."}, "greater than"),
    ],
)
async def test_a_refusal_says_what_to_do(
    server: CannedServer, connect: Connect, tmp_path: Path, cue: dict[str, object], reason: str
) -> None:
    async with connect(server) as engine:
        for name, value in cue.items():
            setattr(server, name, value)
        write_adapter(tmp_path / "a", engine)
        with pytest.raises(AdapterError, match=reason):
            await engine.load_adapter(tmp_path / "a")
        assert (await engine.score(["x"], TASK)).logprobs[0].tolist() == BASE


async def test_a_damaged_folder_never_reaches_the_server(
    server: CannedServer, connect: Connect, tmp_path: Path
) -> None:
    async with connect(server) as engine:
        write_adapter(tmp_path / "a", engine)
        (tmp_path / "a" / "extra.py").write_text("")
        with pytest.raises(AdapterError, match="unexpected files"):
            await engine.load_adapter(tmp_path / "a")
    assert "/v1/load_lora_adapter" not in server.paths

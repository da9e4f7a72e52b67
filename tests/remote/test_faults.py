"""Faults of the server and of the way to it: what is tried again, what is rejected, and what ends the run."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from afdc.errors import EngineError, ModelError, UsageError
from afdc_pipeline.seams import Generated, GenerateRequest, Sampling
from afdc_server.remote.engine import RemoteEngine
from afdc_server.remote.http import read_pause
from afdc_server.remote.server import RemoteServer, server_root
from tests.fakes.served import TASK
from tests.remote.canned import CUT, NAN, POISON, REFUSED, CannedServer, Fault
from tests.remote.conftest import Connect


def ask(*prompts: str) -> list[GenerateRequest]:
    return [GenerateRequest(str(i), prompt, 1, Sampling(max_tokens=8)) for i, prompt in enumerate(prompts)]


async def collect(engine: RemoteEngine, requests: list[GenerateRequest]) -> dict[str, Generated]:
    return {answer.id: answer async for answer in engine.generate(requests)}


@pytest.mark.parametrize(
    "fault",
    [Fault(500), Fault(502), Fault(408), Fault(429), Fault(503), Fault(cut=0), Fault(cut=20), Fault(cut=150)],
    ids=lambda fault: f"{fault.status or 'cut'}{fault.cut or ''}",
)
async def test_a_passing_fault_is_tried_again(server: CannedServer, connect: Connect, fault: Fault) -> None:
    async with connect(server) as engine:
        server.faults.extend([fault, fault])
        answers = await collect(engine, ask("a", "b"))
        server.faults.extend([fault, fault])
        scores = await engine.score(["x", "y"], TASK)
    assert [len(answer.completions) for answer in answers.values()] == [1, 1]
    assert not scores.errors
    assert engine.usage().restarts == 0


async def test_the_server_is_obeyed_when_it_says_when_to_come_back(server: CannedServer, connect: Connect) -> None:
    async with connect(server) as engine:
        server.faults.extend([Fault(429, {"Retry-After": "1"})])
        begun = time.monotonic()
        await collect(engine, ask("a"))
        assert time.monotonic() - begun >= 1


async def test_a_busy_server_is_waited_for_beyond_the_tries(server: CannedServer, connect: Connect) -> None:
    async with connect(server, tries=2) as engine:
        server.faults.extend([Fault(429)] * 5)
        answers = await collect(engine, ask("a"))
    assert answers["0"].completions


def test_both_forms_of_retry_after_are_read() -> None:
    assert read_pause({"Retry-After": "7"}) == 7
    assert read_pause({"Retry-After": formatdate(time.time() + 60, usegmt=True)}) == pytest.approx(60, abs=2)
    assert read_pause({"Retry-After": "soon"}) is None
    assert read_pause({}) is None


@pytest.mark.parametrize("token", [REFUSED, NAN, CUT])
async def test_a_poisoned_text_is_rejected_and_its_batch_goes_on(
    server: CannedServer, connect: Connect, token: int
) -> None:
    bad = f"x{chr(token)}"
    async with connect(server, tries=1) as engine:
        answers = await collect(engine, ask("a", bad, "b"))
        scores = await engine.score(["a", "b", bad, "c", "d"], TASK)
    assert [bool(answers[str(i)].error) for i in range(3)] == [False, True, False]
    assert list(scores.errors) == [2]


async def test_a_text_that_ends_the_server_is_found(server: CannedServer, connect: Connect) -> None:
    async def bring_back() -> None:
        while True:
            await asyncio.sleep(0.02)
            if server._listener is not None and not server._listener.is_serving():
                await server.up()

    keeper = asyncio.create_task(bring_back())
    async with connect(server, tries=1) as engine:
        answers = await collect(engine, ask("a", chr(POISON), "b"))
    keeper.cancel()
    assert [bool(answers[str(i)].error) for i in range(3)] == [False, True, False]
    assert "died" in answers["1"].error


async def test_a_server_that_fails_at_everything_is_no_poisoned_text(server: CannedServer, connect: Connect) -> None:
    async with connect(server, tries=1, patience_s=0.3) as engine:
        server.broken = True
        with pytest.raises(EngineError, match="was not ready within"):
            await collect(engine, ask("a"))


async def test_a_server_that_goes_away_is_waited_for(server: CannedServer, connect: Connect) -> None:
    async with connect(server, tries=1) as engine:
        await server.down()
        work = asyncio.create_task(collect(engine, ask("a", "b", "c")))
        await asyncio.sleep(0.3)
        assert not work.done()
        await server.up()
        answers = await work
    assert all(answer.completions for answer in answers.values())
    assert engine.usage().restarts == 1


async def test_patience_has_an_end(server: CannedServer, connect: Connect, tmp_path: Path) -> None:
    async with connect(server, tries=1, patience_s=0.3) as engine:
        await server.down()
        with pytest.raises(EngineError, match=r"was not ready within 0.3 s: .* does not answer"):
            await collect(engine, ask("a"))
        with pytest.raises(EngineError):
            await engine.health()
    assert "waiting" in (tmp_path / "logs" / "engine.log").read_text()


async def test_a_server_that_hangs_is_given_up_and_asked_anew(server: CannedServer, connect: Connect) -> None:
    async with connect(server, {"hang_timeout_s": 0.6}) as engine:
        server.hold = asyncio.Event()
        work = asyncio.create_task(collect(engine, ask("a")))
        await asyncio.sleep(2.5)
        server.hold.set()
        answers = await work
    assert answers["0"].completions
    assert engine.usage().restarts >= 1


async def test_a_server_whose_tokens_grow_does_not_hang(server: CannedServer, connect: Connect) -> None:
    async with connect(server, {"hang_timeout_s": 1.2}) as engine:
        server.hold, server.growing = asyncio.Event(), True
        work = asyncio.create_task(collect(engine, ask("a")))
        await asyncio.sleep(3)
        server.hold.set()
        answers = await work
    assert answers["0"].completions
    assert engine.usage().restarts == 0


async def test_a_text_broken_off_by_a_shutdown_is_asked_again(server: CannedServer, connect: Connect) -> None:
    async with connect(server) as engine:
        server.broken_off = 1
        answers = await collect(engine, ask("a"))
    assert answers["0"].completions[0].finished


async def test_the_first_start_waits_until_the_server_is_ready(server: CannedServer, connect: Connect) -> None:
    server.healthy = False
    async with connect(server, started=False) as engine:
        start = asyncio.create_task(engine.start())
        await asyncio.sleep(0.2)
        assert not start.done()
        server.healthy = True
        info = await start
    assert (info.version, info.max_model_len, info.device) == ("vllm 0.32.0", 512, "remote")


@pytest.mark.parametrize(
    ("cue", "kind", "reason"),
    [
        ({"served": "another"}, ModelError, "serves another, and not m"),
        ({"api_key": "k"}, EngineError, "AFDC_ENGINE_API_KEY"),
        ({"knows_ids": False}, EngineError, "logprob_token_ids"),
        ({"processed": True}, EngineError, "raw_logprobs"),
    ],
)
async def test_a_server_that_does_not_suit_is_refused_at_once(
    server: CannedServer, connect: Connect, cue: dict[str, object], kind: type[Exception], reason: str
) -> None:
    for name, value in cue.items():
        setattr(server, name, value)
    async with connect(server, started=False) as engine:
        with pytest.raises(kind, match=reason):
            await engine.start()


async def test_a_gateway_without_tokenize_will_do(server: CannedServer, connect: Connect) -> None:
    server.tokenises = False
    async with connect(server) as engine:
        assert await engine.health() == "ready"


async def test_another_name_and_a_key_are_used_when_given(server: CannedServer, connect: Connect) -> None:
    server.served, server.api_key = "prod", "k3y"
    async with connect(server, served_name="prod", api_key="k3y") as engine:
        assert (await collect(engine, ask("a")))["0"].completions
    assert "k3y" not in repr(RemoteServer("http://x", api_key="k3y"))


async def test_closing_early_leaves_nothing_behind(server: CannedServer, connect: Connect) -> None:
    async with connect(server) as engine:
        server.delay = 0.2
        answers = engine.generate(ask(*"abcdefgh"))
        await anext(answers)
        await answers.aclose()
        await engine.health()
    with pytest.raises(EngineError):
        await collect(engine, ask("a"))


@pytest.mark.parametrize(
    ("url", "root"),
    [("http://h:8000/v1/", "http://h:8000"), ("https://h/x", "https://h/x"), (" http://[::1]:1 ", "http://[::1]:1")],
)
def test_a_url_is_cut_to_its_root(url: str, root: str) -> None:
    assert server_root(url) == root


@pytest.mark.parametrize("url", ["h:8000", "ftp://h", "http://", "http://u:secret@h", "http://h:99999", "http://h?x=1"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        server_root(url)
    assert "secret" not in str(caught.value)


async def test_a_key_that_is_refused_and_repeated_is_not_told(server: CannedServer, connect: Connect) -> None:
    server.api_key = "another"
    with pytest.raises(EngineError, match=r"refuses our key: Unauthorized: Bearer \*\*\*") as caught:
        async with connect(server, api_key="k3y"):
            pass
    assert "k3y" not in f"{caught.value!r}"

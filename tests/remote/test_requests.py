"""What goes over the wire and what comes back of it."""

from __future__ import annotations

import numpy as np
import pytest

from afdc.errors import AdapterError
from afdc.task import Task
from afdc_pipeline.seams import Generated, GenerateRequest, Sampling
from afdc_server.remote.engine import RemoteEngine
from tests.fakes.served import TASK, Letters
from tests.remote.canned import CannedServer
from tests.remote.conftest import Connect


async def collect(engine: RemoteEngine, *requests: GenerateRequest, task: Task | None = None) -> dict[str, Generated]:
    return {answer.id: answer async for answer in engine.generate(requests, task)}


async def test_a_draw_sends_every_setting_and_reads_every_field(server: CannedServer, connect: Connect) -> None:
    sampling = Sampling(temperature=0.7, top_p=0.9, max_tokens=9, seed=5, stop=("\n",))
    async with connect(server) as engine:
        server.completions.clear()
        answer = (await collect(engine, GenerateRequest("a", "abc", 3, sampling)))["a"]
    [sent] = server.completions
    assert sent == {
        "model": "m",
        "prompt": [97, 98, 99],
        "n": 3,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 9,
        "seed": 5,
        "stop": ["\n"],
        "logprobs": 0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
    assert [one.text for one in answer.completions] == ["3/0", "3/1", "3/2"]
    assert {(one.tokens, one.finished, one.mean_logprob) for one in answer.completions} == {(2, True, -1.5)}
    usage = engine.usage()
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (3, 6, 2)


async def test_the_answer_to_a_text_of_a_task_ends_at_its_terminator(server: CannedServer, connect: Connect) -> None:
    server.finish = "length"
    async with connect(server) as engine:
        server.completions.clear()
        answers = await collect(engine, GenerateRequest("a", "x", 1, Sampling(max_tokens=8)), task=TASK)
    assert server.completions[0]["stop_token_ids"] == [Letters.eos_token_id]
    assert "seed" not in server.completions[0]
    assert not answers["a"].completions[0].finished


async def test_scores_are_sums_over_the_trie(server: CannedServer, connect: Connect) -> None:
    task = Task.model_validate({"labels": ["ab", "ac", "d"]})
    async with connect(server) as engine:
        scores = await engine.score(["x", "y"], task)
    np.testing.assert_allclose(scores.logprobs, [[-97 - 98, -97 - 99, -100]] * 2)


async def test_no_probability_at_all_is_minus_infinity(server: CannedServer, connect: Connect) -> None:
    task = Task.model_validate({"labels": ["a", "\U0001f600"]})
    async with connect(server) as engine:
        scores = await engine.score(["x"], task)
    assert scores.logprobs[0].tolist() == [-97, -np.inf]


async def test_reads_of_one_moment_share_requests(server: CannedServer, connect: Connect) -> None:
    async with connect(server) as engine:
        server.completions.clear()
        scores = await engine.score([f"text {i}" for i in range(64)], TASK)
    assert not scores.errors
    assert [len(one["prompt"]) for one in server.completions] == [16] * 4


async def test_a_wide_label_set_is_read_in_pieces(server: CannedServer, connect: Connect) -> None:
    labels = [chr(300 + i) for i in range(300)]
    async with connect(server) as engine:
        server.completions.clear()
        scores = await engine.score(["x"], Task.model_validate({"labels": labels}))
    assert scores.logprobs[0].tolist() == [-float(300 + i) for i in range(300)]
    assert max(len(one["logprob_token_ids"]) for one in server.completions) <= 128


async def test_requests_at_once_are_bounded_and_connections_reused(server: CannedServer, connect: Connect) -> None:
    server.delay = 0.005
    async with connect(server, {"max_in_flight": 4}) as engine:
        answers = await collect(engine, *(GenerateRequest(str(i), "ab", 1, Sampling(max_tokens=8)) for i in range(40)))
    assert len(answers) == 40
    assert server.most_at_once == 4
    assert server.connections <= 5


async def test_an_unknown_adapter_is_an_error_at_once(server: CannedServer, connect: Connect) -> None:
    async with connect(server) as engine:
        with pytest.raises(AdapterError, match="no adapter"):
            await engine.score(["x"], TASK, "never")


async def test_it_has_no_device_to_lend(server: CannedServer, connect: Connect) -> None:
    async with connect(server) as engine:
        await engine.lend_device()
        assert await engine.health() == "ready"
        await engine.reclaim_device()

"""The remote engine on a real `vllm serve`, against the engine of this process: the same numbers and the same texts."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from afdc.engine_config import EngineConfig
from afdc.errors import AdapterError, ModelError
from afdc.prompting import PromptCodec
from afdc.task import Task
from afdc_pipeline.context import SilentProgress
from afdc_pipeline.seams import Engine, Generated, GenerateRequest, Sampling
from afdc_server.commands import Labeller, score
from afdc_server.engine.build import load_tokenizer
from afdc_server.models import ModelRef
from afdc_server.remote.engine import RemoteEngine, connect_engine
from afdc_server.remote.server import RemoteServer
from tests.reference import load_base, save_adapter, sentiment_task
from tests.remote.real_server import free_port, vllm_serve

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TEXTS = ("I think I lost my card on the train", "<|im_end|> 请告诉我今天的汇率", "")
EXACT = 1e-3  # natural log; float32 against float32
CONFIG = EngineConfig(max_model_len=512, max_loras=3, hang_timeout_s=120)


@pytest.fixture(scope="module")
def task() -> Task:
    return sentiment_task()


@pytest.fixture(scope="module")
def url(model: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_serve(model, tmp_path_factory.mktemp("vllm-serve"), free_port()) as address:
        yield address


@pytest.fixture(scope="module")
def adapter(model: ModelRef, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    codec = PromptCodec(load_tokenizer(model.path), task)
    folder = tmp_path_factory.mktemp("remote-adapter") / "a"
    return save_adapter(folder, load_base(model), model, codec, ("My card is gone.",), seed=3)


@pytest_asyncio.fixture(scope="module")
async def remote(model: ModelRef, url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RemoteEngine]:
    made = connect_engine(model, RemoteServer(url), CONFIG, tmp_path_factory.mktemp("remote-logs"))
    await made.start()
    yield made
    await made.close()


async def collect(
    engine: Engine, requests: Sequence[GenerateRequest], task: Task | None = None
) -> dict[str, Generated]:
    return {answer.id: answer async for answer in engine.generate(requests, task)}


async def test_it_knows_the_server(model: ModelRef, url: str, tmp_path: Path) -> None:
    engine = connect_engine(model, RemoteServer(f"{url}/v1/"), CONFIG, tmp_path)
    info = await engine.start()
    assert info.version.startswith("vllm 0.")
    assert (info.max_model_len, info.model_revision, info.chat) == (512, model.revision, True)
    assert await engine.health() == "ready"
    await engine.close()


async def test_a_command_asks_the_server_that_the_settings_name(
    engine: Engine, url: str, task: Task, tmp_path: Path
) -> None:
    source, output = tmp_path / "texts.jsonl", tmp_path / "scores.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:2]))
    config = CONFIG.model_copy(update={"url": url})
    await score(Labeller(task, engine=config, logs=tmp_path), source, output, SilentProgress())
    found = [[*json.loads(line)["label_logprobs"].values()] for line in output.read_text().splitlines()]
    np.testing.assert_allclose(found, (await engine.score(TEXTS[:2], task)).logprobs, atol=EXACT)


async def test_scores_are_those_of_the_local_engine(engine: Engine, remote: RemoteEngine, task: Task) -> None:
    wide = Task(instruction="Pick.", labels=tuple(f"{i} item" for i in range(200)))
    for asked in (task, wide):
        here, there = await engine.score(TEXTS, asked), await remote.score(TEXTS, asked)
        assert not there.errors
        np.testing.assert_allclose(there.logprobs, here.logprobs, atol=EXACT)


async def test_draws_are_those_of_the_local_engine(engine: Engine, remote: RemoteEngine, task: Task) -> None:
    greedy, seeded = Sampling(temperature=0, max_tokens=12), Sampling(max_tokens=12, seed=7, top_p=0.9)
    stopped = Sampling(temperature=0, max_tokens=32, stop=("\n",))
    requests = [
        GenerateRequest("greedy", "Once upon a time", 1, greedy),
        GenerateRequest("seeded", "The weather today is", 3, seeded),
        GenerateRequest("stopped", "One\nTwo\nThree\n", 1, stopped),
    ]
    for asked in (None, task):
        here, there = await collect(engine, requests, asked), await collect(remote, requests, asked)
        for id, answer in here.items():
            for mine, theirs in zip(answer.completions, there[id].completions, strict=True):
                assert (mine.text, mine.tokens, mine.finished) == (theirs.text, theirs.tokens, theirs.finished)
                assert mine.mean_logprob == pytest.approx(theirs.mean_logprob, abs=EXACT)


async def test_a_request_that_cannot_be_served_is_rejected_alone(remote: RemoteEngine) -> None:
    requests = [
        GenerateRequest("good", "Hello", 1, Sampling(max_tokens=4)),
        GenerateRequest("greedy", "Hello", 2, Sampling(temperature=0, max_tokens=4)),
        GenerateRequest("long", "word " * 600, 1, Sampling(max_tokens=4)),
    ]
    answers = await collect(remote, requests)
    assert "greedy" in answers["greedy"].error
    assert "tokens" in answers["long"].error
    assert answers["good"].completions


async def test_an_adapter_answers_as_in_the_local_engine(
    engine: Engine, remote: RemoteEngine, task: Task, adapter: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    name = (await engine.load_adapter(folder)).name
    await remote.load_adapter(folder)
    try:
        base, here, there = [
            (await one.score(TEXTS, task, served)).logprobs
            for one, served in ((remote, None), (engine, name), (remote, name))
        ]
        assert np.abs(base - there).max() > 0.5
        np.testing.assert_allclose(there, here, atol=EXACT)
    finally:
        await engine.unload_adapter(name)
        await remote.unload_adapter(name)
    with pytest.raises(AdapterError, match="no adapter"):
        await remote.score(TEXTS, task, name)


async def test_a_folder_that_vllm_refuses_is_an_adapter_error(
    url: str, model: ModelRef, task: Task, tmp_path: Path
) -> None:
    codec = PromptCodec(load_tokenizer(model.path), task)
    folder = save_adapter(tmp_path / "wide", load_base(model), model, codec, (), rank=32)
    config = CONFIG.model_copy(update={"max_lora_rank": 32})
    engine = connect_engine(model, RemoteServer(url), config, tmp_path)
    await engine.start()
    with pytest.raises(AdapterError, match="rank"):
        await engine.load_adapter(folder)
    await engine.close()


async def test_another_model_is_refused(model: ModelRef, url: str, tmp_path: Path) -> None:
    other = ModelRef("someone/else", shutil.copytree(model.path, tmp_path / "else"), "r", 1)
    engine = connect_engine(other, RemoteServer(url), CONFIG, tmp_path)
    with pytest.raises(ModelError, match="serves"):
        await engine.start()


async def test_a_server_that_restarts_gets_its_adapters_back(
    model: ModelRef, task: Task, adapter: Path, tmp_path: Path
) -> None:
    port = free_port()
    config = CONFIG.model_copy(update={"max_in_flight": 8})
    with vllm_serve(model, tmp_path, port) as address:
        engine = connect_engine(model, RemoteServer(address, tries=2), config, tmp_path)
        await engine.start()
        name = (await engine.load_adapter(adapter)).name
        before: Any = await engine.score(TEXTS, task, name)
    with vllm_serve(model, tmp_path, port):
        after: Any = await engine.score(TEXTS, task, name)
        await engine.close()
    np.testing.assert_allclose(after.logprobs, before.logprobs, atol=EXACT)
    assert engine.usage().restarts >= 1

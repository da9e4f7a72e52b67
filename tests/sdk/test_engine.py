"""Predictions, and the engine itself."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from afdc.errors import InputError, UsageError
from afdc.sdk import engine
from tests.sdk.service import ADAPTER, JOB, TASK, Service, settle


def body(request: httpx.Request) -> Any:
    return json.loads(request.content)


def predictions(request: httpx.Request) -> httpx.Response:
    data = [{"text": text, "label": "up", "probs": {"up": 0.75, "down": 0.25}} for text in body(request)["texts"]]
    return httpx.Response(200, json={"adapter": ADAPTER, "data": data})


async def test_predict(client: Any, service: Service) -> None:
    service.on("POST /v1/predict", httpx.ReadError("cut"), predictions)
    found = await settle(client.predict(["My card was declined"], job=JOB))
    assert found[0].label == "up"
    assert body(service.requests[0]) == {"job": JOB, "texts": ["My card was declined"]}
    assert [one.text for one in await settle(client.predict("one text", adapter=ADAPTER))] == ["one text"]
    assert await settle(client.predict([], job=JOB)) == []


async def test_many_texts_go_in_batches(client: Any, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BATCH", 3)
    service.on("POST /v1/predict", predictions)
    texts = [str(number) for number in range(8)]
    assert [one.text for one in await settle(client.predict(iter(texts), job=JOB))] == texts
    assert [len(body(request)["texts"]) for request in service.requests] == [3, 3, 2]


async def test_what_predict_refuses(client: Any, service: Service) -> None:
    for given in ({}, {"job": JOB, "adapter": ADAPTER}):
        with pytest.raises(UsageError, match="a job or an adapter"):
            await settle(client.predict(["x"], **given))
    with pytest.raises(InputError, match=r"texts\[0\]"):
        await settle(client.predict([5], job=JOB))
    assert not service.requests


async def test_generate(client: Any, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BATCH", 2)

    def reply(request: httpx.Request) -> httpx.Response:
        one = {"text": "!", "tokens": 1, "finished": True}
        data = [{"id": str(prompt["prompt"]), "completions": [one]} for prompt in body(request)["prompts"]]
        return httpx.Response(200, json={"data": data, "model": "m"})

    service.on("POST /v1/generate", reply)
    prompts = ["a", {"prompt": [{"role": "user", "content": "b"}], "n": 2}, "c"]
    found = await settle(client.generate(prompts, sampling={"temperature": 0.0, "max_tokens": 4}))
    assert len(found.data) == 3
    assert found.model == "m"
    assert body(service.requests[0])["sampling"] == {"temperature": 0.0, "max_tokens": 4}
    assert body(service.requests[1]) == {
        "prompts": [{"prompt": "c"}],
        "sampling": {"temperature": 0.0, "max_tokens": 4},
    }
    assert len((await settle(client.generate("one"))).data) == 1


async def test_score(client: Any, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BATCH", 2)

    def reply(request: httpx.Request) -> httpx.Response:
        texts = body(request)["texts"]
        errors = {str(place): "too long" for place, text in enumerate(texts) if text == "bad"}
        rows = [[-0.5, None]] * len(texts)
        return httpx.Response(200, json={"labels": ["up", "down"], "logprobs": rows, "errors": errors, "model": "m"})

    service.on("POST /v1/score", reply)
    found = await settle(client.score(["a", "b", "bad"], task=TASK))
    assert found.labels == ["up", "down"]
    assert len(found.logprobs) == 3
    assert found.errors == {2: "too long"}


async def test_every_text_is_checked_before_the_first_batch_is_paid_for(client: Any, service: Service) -> None:
    texts = ["fine"] * 300 + [""]
    with pytest.raises(InputError, match=r"texts\[300\]"):
        await settle(client.predict(texts, job="job_1"))
    with pytest.raises(InputError, match=r"prompts\[300\].*n"):
        await settle(client.generate([{"prompt": "a"}] * 300 + [{"prompt": "a", "n": 0}]))
    assert not service.requests

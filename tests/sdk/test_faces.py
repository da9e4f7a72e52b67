"""Both clients are one: the same operations with the same signatures, written once."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from afdc import AsyncClient, Client
from afdc.sdk.adapters import AdapterHandle
from afdc.sdk.datasets import DatasetHandle
from afdc.sdk.faces import drain, drive
from afdc.sdk.job_handle import JobHandle
from afdc.wire.datasets import Dataset
from afdc.wire.jobs import Job
from afdc.wire.models import Adapter
from tests.sdk.service import ADAPTER, DATASET, JOB, NOW, TASK, Service, job, settle

RESOURCES = ("seeds", "jobs", "datasets", "adapters", "keys", "engine")


def operations(thing: Any) -> dict[str, str]:
    names = [name for name in dir(thing) if not name.startswith("_")]
    return {name: str(inspect.signature(getattr(thing, name))) for name in names if callable(getattr(thing, name))}


def everything(client: Any) -> Iterator[tuple[str, Any]]:
    yield "client", client
    for name in RESOURCES:
        yield name, getattr(client, name)
    yield "job", JobHandle(client._sender, Job.model_validate(job()))
    found = {"id": DATASET, "job": JOB, "version": 1, "task": TASK, "rows": 1, "rejected": 0, "created_at": NOW}
    yield "dataset", DatasetHandle(client._sender, Dataset.model_validate(found))
    base = {"base_model": "m", "base_revision": "r", "rank": 8, "task": TASK, "created_at": NOW}
    one = Adapter.model_validate({"id": ADAPTER, "name": "n", "job": JOB, "round": 1, "final": True, **base})
    yield "adapter", AdapterHandle(client._sender, one)


async def test_names_and_signatures_are_the_same() -> None:
    blocking, awaiting = dict(everything(Client())), dict(everything(AsyncClient()))
    assert blocking.keys() == awaiting.keys()
    for name, thing in blocking.items():
        assert operations(thing) == operations(awaiting[name]), name
        assert operations(thing), name


def test_constructors_take_the_same() -> None:
    first, second = inspect.signature(Client).parameters, inspect.signature(AsyncClient).parameters
    assert [(p.name, p.kind) for p in first.values()] == [(p.name, p.kind) for p in second.values()]
    same = [name for name in first if name != "sleep"]
    assert [first[name].default for name in same] == [second[name].default for name in same]


def test_the_operations_that_are_documented() -> None:
    found = {name: set(operations(thing)) for name, thing in everything(Client())}
    assert found["client"] == {"predict", "generate", "score", "health", "ready", "version", "close"}
    assert found["seeds"] == {"create", "validate", "get", "list", "examples", "delete"}
    steering = {"cancel", "pause", "resume", "retry", "delete"}
    watching = {"get", "list", "wait", "events", "stream", "rounds", "metrics", "metrics_csv", "checkpoints"}
    assert found["jobs"] == {"create", "preview", "estimate"} | steering | watching
    assert found["datasets"] == {
        "get",
        "rows",
        "download",
        "export",
        "reviews",
        "review_file",
        "labelstudio_config",
        "to_datasets",
        "to_pandas",
    }
    assert found["adapters"] == {"get", "download"}
    assert found["keys"] == {"create", "list", "revoke"}
    assert found["engine"] == {"adapters", "load", "unload"}


def test_every_operation_is_explained() -> None:
    for name, thing in everything(Client()):
        for operation in operations(thing):
            assert inspect.getdoc(getattr(thing, operation)), f"{name}.{operation}"


def test_blocking_and_awaiting_results(service: Service) -> None:
    service.on("GET /healthz", {"status": "ok"})
    transport = httpx.MockTransport(service)
    assert Client(transport=transport).health().status == "ok"
    assert inspect.iscoroutine(pending := AsyncClient(transport=transport).health())
    assert asyncio.run(pending).status == "ok"


def test_context_managers_close(service: Service) -> None:
    transport = httpx.MockTransport(service)
    with Client(transport=transport) as client:
        pass
    with pytest.raises(Exception, match="the client is closed"):
        client.health()

    async def run() -> None:
        async with AsyncClient(transport=transport) as other:
            pass
        with pytest.raises(Exception, match="the client is closed"):
            await other.health()

    asyncio.run(run())


async def test_the_blocking_client_works_inside_a_running_loop(service: Service) -> None:
    service.on("GET /v1/jobs", {"data": [job()], "has_more": False})
    client = Client(transport=httpx.MockTransport(service))
    assert [found.id for found in client.jobs.list()] == [JOB]


async def test_close_is_an_operation(client: Any) -> None:
    await settle(client.close())


def test_a_coroutine_that_waits_is_refused() -> None:
    async def waits() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="waited for an event loop"):
        drive(waits())


def test_leaving_a_feed_early_closes_it() -> None:
    closed = []

    async def numbers() -> Any:
        try:
            for number in range(10):
                yield number
        finally:
            closed.append(True)

    feed = drain(numbers())
    assert next(feed) == 0
    feed.close()  # type: ignore[attr-defined]  # a generator
    assert closed == [True]

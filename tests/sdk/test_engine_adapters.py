"""The adapters in the engine's slots, through both clients against a whole server over the fake engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from afdc import AsyncClient, Client
from afdc.errors import UsageError
from afdc.sdk.exceptions import AuthError, NotFoundError
from tests.sdk.service import ADAPTER, Service, problem, settle
from tests.service.world import World, finished, post_job, post_seeds, running


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("service")) as found:
        yield found


@pytest.fixture(scope="module")
def adapter(world: World) -> str:
    """The id of one that a job has made."""
    with world.client() as plain:
        job = finished(plain, post_job(plain, post_seeds(plain))["id"])
    return str(job["adapter"])


@pytest_asyncio.fixture(params=[Client, AsyncClient])
async def operator(request: pytest.FixtureRequest, world: World) -> AsyncIterator[Any]:
    found = request.param(world.address, world.key())
    yield found
    await settle(found.close())


async def test_load_list_unload(operator: Any, adapter: str) -> None:
    made = await settle(operator.engine.load(adapter))
    assert (made.id, made.loaded, made.users) == (adapter, True, 0)
    assert (await settle(operator.engine.load(adapter))).name == made.name  # a repeat changes nothing
    listed = await settle(operator.engine.adapters())
    assert {one.name: one.loaded for one in listed.data}[made.name]
    assert listed.slots > 0
    assert (await settle(operator.engine.unload(made.name))).id == made.name
    assert not {one.name: one.loaded for one in (await settle(operator.engine.adapters())).data}[made.name]
    with pytest.raises(NotFoundError):
        await settle(operator.engine.unload(made.name))
    assert (await settle(operator.predict("a text", adapter=adapter)))[0].label  # whoever needs it has it loaded again


async def test_what_is_refused(operator: Any, world: World) -> None:
    with pytest.raises(NotFoundError):
        await settle(operator.engine.load(ADAPTER))
    with pytest.raises(UsageError, match="is not an id"):
        await settle(operator.engine.unload("../keys"))
    with Client(world.address, world.key("default", "read", "jobs")) as user, pytest.raises(AuthError):
        user.engine.adapters()


async def test_an_adapter_in_use_is_asked_for_again(client: Any, service: Service) -> None:
    busy = problem(503, "busy", {"Retry-After": "5"}, retryable=True)
    service.on("DELETE /v1/engine/adapters/job-r1", busy, {"id": "job-r1", "deleted": True})
    assert (await settle(client.engine.unload("job-r1"))).id == "job-r1"

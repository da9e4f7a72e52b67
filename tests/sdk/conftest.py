"""Each test of the client runs with both clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from afdc import AsyncClient, Client
from tests.sdk.service import KEY, Service, Time

AnyClient = Any
MakeClient = Callable[..., AnyClient]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AFDC_SERVER", raising=False)
    monkeypatch.delenv("AFDC_API_KEY", raising=False)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture(params=["blocking", "awaiting"])
def make_client(request: pytest.FixtureRequest, service: Service, time: Time) -> MakeClient:
    """Makes a client of one kind on the scripted server."""

    def make(**settings: Any) -> AnyClient:
        given = {"api_key": KEY, "transport": httpx.MockTransport(service), "clock": time.clock(), **settings}
        if request.param == "blocking":
            return Client(sleep=time.sleep, **given)
        return AsyncClient(sleep=time.sleep_async, **given)

    return make


@pytest.fixture
def client(make_client: MakeClient) -> AnyClient:
    return make_client()

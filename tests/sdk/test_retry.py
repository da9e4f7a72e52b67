"""When requests are repeated, after how long, and when not."""

from __future__ import annotations

import email.utils
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afdc.sdk.exceptions import (
    ApiError,
    ConflictApiError,
    InvalidRequestError,
    RateLimitedError,
    ServerFailedError,
    UnreachableError,
)
from afdc.sdk.retry import RetryPolicy, parse_retry_after
from afdc.wire.common import Problem
from tests.sdk.conftest import MakeClient
from tests.sdk.service import JOB, SEEDS, Service, Time, job, problem, settle

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
MOMENTS = st.datetimes(datetime(1971, 1, 1), datetime(2068, 1, 1)).map(  # hypothesis wants them naive
    lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
)
FORMATS = ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y")


@given(st.integers(0, 10**9))
def test_seconds(seconds: int) -> None:
    assert parse_retry_after(f" {seconds} ", NOON) == seconds


@given(MOMENTS, MOMENTS, st.sampled_from(FORMATS))
def test_dates_in_all_three_forms(date: datetime, now: datetime, form: str) -> None:
    """RFC 9110, 5.6.7: the preferred form and the two obsolete ones that a reader must accept."""
    assert parse_retry_after(date.strftime(form), now) == max((date - now).total_seconds(), 0)


@given(st.text() | st.text("0123456789.-+eE:, GMTJanSun", max_size=40))
def test_anything_else_is_nothing_or_a_time_to_come(value: str) -> None:
    found = parse_retry_after(value, NOON)
    assert found is None or found >= 0


@pytest.mark.parametrize("value", [None, "", "-1", "soon", "1e3", "nan", "inf", "\u0661", "0x10", "9" * 4000])
def test_what_is_no_time(value: str | None) -> None:
    assert parse_retry_after(value, NOON) is None


def test_a_date_without_a_zone_is_utc() -> None:
    assert parse_retry_after(email.utils.format_datetime(NOON + timedelta(seconds=9)), NOON) == 9


@given(st.integers(1, 60), st.floats(0, 1, exclude_max=True))
def test_backoff_is_full_jitter_under_a_doubling_limit(failures: int, draw: float) -> None:
    policy = RetryPolicy(attempts=50, draw=lambda: draw)
    delay = policy.delay(UnreachableError("x"), failures)
    if failures > 50:
        assert delay is None
    else:
        assert delay == draw * min(8.0, 0.5 * 2 ** (failures - 1))


@given(st.floats(0, 1e9))
def test_the_server_s_wish_is_granted_up_to_a_cap(seconds: float) -> None:
    error = ApiError(Problem(title="x", status=429, code="x"), 429, retry_after=seconds)
    delay = RetryPolicy(draw=lambda: 0.5).delay(error, 1)
    assert delay is not None
    assert min(seconds, 60) <= delay <= min(seconds, 60) + 0.5


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_statuses_that_pass(client: Any, service: Service, time: Time, status: int) -> None:
    service.on(f"GET /v1/jobs/{JOB}", problem(status, "x"), problem(status, "x"), job())
    assert (await settle(client.jobs.get(JOB))).id == JOB
    assert time.slept == [0.25, 0.5]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 501])
async def test_statuses_that_do_not(client: Any, service: Service, time: Time, status: int) -> None:
    service.on(f"GET /v1/jobs/{JOB}", problem(status, "x"))
    with pytest.raises(ApiError):
        await settle(client.jobs.get(JOB))
    assert len(service.requests) == 1
    assert time.slept == []


async def test_retry_after_is_obeyed(client: Any, service: Service, time: Time) -> None:
    wait = {"Retry-After": "7"}
    service.on(f"GET /v1/jobs/{JOB}", problem(429, "x", wait), problem(503, "x", {"Retry-After": "100000"}), job())
    await settle(client.jobs.get(JOB))
    assert time.slept == [7.25, 60.25]


async def test_it_gives_up_with_the_last_error(make_client: MakeClient, service: Service, time: Time) -> None:
    service.on(f"GET /v1/jobs/{JOB}", problem(429, "slow_down", {"Retry-After": "2"}))
    with pytest.raises(RateLimitedError) as caught:
        await settle(make_client(max_retries=2).jobs.get(JOB))
    assert len(service.requests) == 3
    assert (caught.value.retry_after, caught.value.retryable, caught.value.code) == (2, True, "slow_down")
    with pytest.raises(RateLimitedError):
        await settle(make_client(max_retries=0).jobs.get(JOB))
    assert len(service.requests) == 4


@pytest.mark.parametrize("error", [httpx.ReadError("cut"), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("x")])
async def test_a_lost_reply_is_asked_for_again(client: Any, service: Service, error: Exception) -> None:
    service.on(f"GET /v1/jobs/{JOB}", error, job())
    assert (await settle(client.jobs.get(JOB))).id == JOB


async def test_a_create_carries_one_key_through_all_attempts(client: Any, service: Service) -> None:
    busy = problem(409, "in_flight", retryable=True)
    service.on("POST /v1/jobs", httpx.ReadError("cut"), problem(503, "x"), busy, job("queued"))
    await settle(client.jobs.create(SEEDS))
    requests = service.seen("POST /v1/jobs")
    assert len(requests) == 4
    assert len({request.headers["idempotency-key"] for request in requests}) == 1
    assert len({request.content for request in requests}) == 1
    await settle(client.jobs.create(SEEDS))
    assert service.requests[-1].headers["idempotency-key"] != requests[0].headers["idempotency-key"]


async def test_a_key_of_the_user_s(client: Any, service: Service) -> None:
    service.on("POST /v1/jobs", job("queued"))
    await settle(client.jobs.create(SEEDS, idempotency_key="mine"))
    assert service.requests[-1].headers["idempotency-key"] == "mine"
    with pytest.raises(Exception, match="no idempotency key"):
        await settle(client.jobs.create(SEEDS, idempotency_key="a\nb"))


@pytest.mark.parametrize("error", [httpx.ReadError("cut"), problem(503, "x"), problem(500, "x")])
async def test_what_is_not_idempotent_is_sent_once(client: Any, service: Service, error: Any) -> None:
    service.on("POST /v1/keys", error)
    with pytest.raises((UnreachableError, ServerFailedError)):
        await settle(client.keys.create("ci"))
    assert len(service.requests) == 1


async def test_a_connection_that_was_never_made_is_tried_again_for_everything(client: Any, service: Service) -> None:
    service.on(f"POST /v1/jobs/{JOB}/retry", httpx.ConnectError("refused"), job("queued"))
    assert (await settle(client.jobs.retry(JOB))).status == "queued"


async def test_a_conflict_and_a_refusal_rise_at_once(client: Any, service: Service) -> None:
    service.on("POST /v1/jobs", problem(409, "conflict"), problem(422, "reused_key"))
    with pytest.raises(ConflictApiError):
        await settle(client.jobs.create(SEEDS))
    with pytest.raises(InvalidRequestError):
        await settle(client.jobs.create(SEEDS))
    assert len(service.requests) == 2

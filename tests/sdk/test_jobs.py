"""Jobs: create, wait, act, and what a handle shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from afdc.errors import InputError, UsageError
from afdc.sdk.exceptions import (
    JobCancelledError,
    JobFailedError,
    NotReadyError,
    UnreachableError,
    WaitTimeoutError,
)
from afdc.wire.seeds import SeedSet
from tests.sdk.service import (
    ADAPTER,
    DATASET,
    JOB,
    NOW,
    SEEDS,
    TASK,
    Service,
    Time,
    collect,
    event,
    job,
    problem,
    seed_set,
    settle,
)

ROWS = [{"text": "a", "label": "up"}, {"text": "b", "label": "down"}]
GOLD, TEXTS = f"{SEEDS[:-1]}1", f"{SEEDS[:-1]}2"
LOOK = f"GET /v1/jobs/{JOB}"


def body(request: httpx.Request) -> Any:
    return json.loads(request.content)


async def test_create_from_files(client: Any, service: Service, tmp_path: Path) -> None:
    (tmp_path / "seeds.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "task.json").write_text(json.dumps(TASK))
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    sets = [seed_set(), seed_set(id=GOLD, kind="gold"), seed_set(id=TEXTS, kind="unlabeled", task=None)]
    service.on("POST /v1/seeds", *sets)
    service.on("POST /v1/jobs", httpx.Response(202, json=job("queued"), headers={"Location": f"/v1/jobs/{JOB}"}))
    made = await settle(
        client.jobs.create(
            tmp_path / "seeds.jsonl",
            task=tmp_path / "task.json",
            eval=ROWS,
            unlabeled=str(tmp_path / "texts.txt"),
            settings={"augment": {"variants": 8}},
            metadata={"team": "a"},
            idempotency_key="k",
        )
    )
    assert (made.id, made.status, made.job.seeds) == (JOB, "queued", SEEDS)
    *uploads, create = service.requests
    assert [request.headers["idempotency-key"] for request in uploads] == ["k.seeds", "k.eval", "k.unlabeled"]
    assert uploads[0].url.params.get_list("label") == ["up", "down"]
    assert (body(uploads[1])["kind"], body(uploads[1])["task"]["instruction"]) == ("gold", "Which?")
    assert dict(uploads[2].url.params) == {"kind": "unlabeled", "on_invalid": "reject", "name": "texts.txt"}
    named = {"seeds": SEEDS, "eval": GOLD, "unlabeled": TEXTS}
    assert body(create) == named | {"settings": {"augment": {"variants": 8}}, "metadata": {"team": "a"}}


async def test_create_from_sets(client: Any, service: Service) -> None:
    service.on("POST /v1/jobs", job("queued"))
    await settle(client.jobs.create(SeedSet.model_validate(seed_set()), eval=GOLD, preset="paper", reviews=[DATASET]))
    assert len(service.requests) == 1
    assert body(service.requests[0]) == {"seeds": SEEDS, "eval": GOLD, "preset": "paper", "reviews": [DATASET]}
    with pytest.raises(UsageError, match="task of its own"):
        await settle(client.jobs.create(SEEDS, task=TASK))
    with pytest.raises(InputError, match="preset"):
        await settle(client.jobs.create(SEEDS, preset="best"))


async def test_gold_gets_the_labels_of_the_seeds(client: Any, service: Service) -> None:
    service.on("POST /v1/seeds", seed_set(id=GOLD, kind="gold"))
    service.on(f"GET /v1/seeds/{SEEDS}", seed_set())
    service.on("POST /v1/jobs", job("queued"))
    await settle(client.jobs.create(SEEDS, eval=ROWS[:1]))
    assert [label["name"] for label in body(service.seen("POST /v1/seeds")[0])["task"]["labels"]] == ["up", "down"]


async def test_a_file_called_like_an_id_is_a_file(
    client: Any, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed_one").write_text(json.dumps(ROWS[0]))
    service.on("POST /v1/seeds", seed_set())
    service.on("POST /v1/jobs", job("queued"))
    await settle(client.jobs.create("seed_one"))
    assert len(service.seen("POST /v1/seeds")) == 1


async def test_preview_and_estimate(client: Any, service: Service) -> None:
    row = {"text": "x", "kept": True, "reason": "kept"}
    service.on("POST /v1/jobs/preview", httpx.ReadError("cut"), {"data": [row]})
    service.on("POST /v1/jobs/estimate", {"seconds": 9.5, "prompt_tokens": 1, "completion_tokens": 2, "rows": 3})
    assert (await settle(client.jobs.preview(SEEDS, preset="paper"))).data[0].reason == "kept"
    assert (await settle(client.jobs.estimate(SEEDS, settings={"loop": {"rounds": 1}}))).seconds == 9.5
    assert body(service.requests[-1]) == {"seeds": SEEDS, "settings": {"loop": {"rounds": 1}}}


async def test_wait_polls_until_it_is_over(client: Any, service: Service, time: Time) -> None:
    service.on(LOOK, job(), job(), job("finalizing"), job("succeeded", dataset=DATASET))
    assert (await settle(client.jobs.wait(JOB))).dataset == DATASET
    waits = [request.url.params.get("wait") for request in service.requests]
    assert waits == [None, "30", "30", "30"]
    assert time.slept == [1.0, 1.0], "a server that does not hold the poll is not asked in a tight loop"


async def test_an_unchanged_job_is_not_sent_again(client: Any, service: Service) -> None:
    first = httpx.Response(200, json=job(), headers={"ETag": '"1"'})
    service.on(LOOK, first, httpx.Response(304), job("succeeded"))
    assert (await settle(client.jobs.wait(JOB))).status == "succeeded"
    assert [request.headers.get("if-none-match") for request in service.requests] == [None, '"1"', '"1"']


async def test_the_end_of_patience(client: Any, service: Service, time: Time) -> None:
    def hold(request: httpx.Request) -> httpx.Response:
        time.now += float(request.url.params.get("wait", 0))
        return httpx.Response(200, json=job())

    service.on(LOOK, hold)
    with pytest.raises(WaitTimeoutError, match="still running after 45 s") as caught:
        await settle(client.jobs.wait(JOB, timeout=45))
    assert isinstance(caught.value, TimeoutError)
    assert [request.url.params.get("wait") for request in service.requests] == [None, "30", "15"]


@pytest.mark.parametrize(
    ("status", "error", "kind", "exit_code", "told"),
    [
        ("failed", {"code": "c", "message": "Bad.", "category": "user", "retryable": False}, JobFailedError, 6, "Bad "),
        ("failed", {"code": "c", "message": "m", "category": "server", "retryable": True}, JobFailedError, 6, "retry"),
        ("failed", None, JobFailedError, 6, "failed"),
        ("expired", None, JobFailedError, 6, "expired"),
        ("cancelled", None, JobCancelledError, 7, "cancelled"),
    ],
)
async def test_other_endings(
    client: Any, service: Service, status: str, error: Any, kind: Any, exit_code: int, told: str
) -> None:
    service.on(LOOK, job(status, error=error))
    with pytest.raises(kind, match=told) as caught:
        await settle(client.jobs.wait(JOB))
    assert caught.value.exit_code == exit_code
    assert caught.value.job.status == status
    handle = await settle(client.jobs.get(JOB))
    with pytest.raises(kind):
        await settle(handle.wait(progress=False))


async def test_an_outage_is_sat_out(client: Any, service: Service, time: Time) -> None:
    away = [httpx.ConnectError("refused")] * 12
    service.on(LOOK, job(), *away, problem(503, "starting"), job("succeeded"))
    assert (await settle(client.jobs.wait(JOB))).status == "succeeded"


async def test_an_outage_that_does_not_end(client: Any, service: Service, time: Time) -> None:
    service.on(LOOK, job(), httpx.ConnectError("refused"))
    with pytest.raises(UnreachableError):
        await settle(client.jobs.wait(JOB))
    assert 300 < sum(time.slept) < 330
    before = sum(time.slept)
    with pytest.raises(UnreachableError):
        await settle(client.jobs.wait(JOB))
    assert sum(time.slept) - before < 30, "a server that was never there is not waited for"


async def test_get_can_wait(client: Any, service: Service) -> None:
    service.on(LOOK, job())
    assert (await settle(client.jobs.get(JOB, wait=2.5))).status == "running"
    assert service.requests[0].url.params["wait"] == "3"
    assert service.requests[0].extensions["timeout"]["read"] == 62.5


async def test_actions(client: Any, service: Service) -> None:
    for action, status in (("cancel", "cancelling"), ("pause", "pausing"), ("resume", "queued"), ("retry", "queued")):
        path = f"POST /v1/jobs/{JOB}/{action}"
        service.on(path, httpx.ReadError("cut"), job(status))
        assert (await settle(getattr(client.jobs, action)(JOB))).status == status
        assert len(service.seen(path)) == 2
        assert len({request.headers["idempotency-key"] for request in service.seen(path)}) == 1
    service.on(LOOK, job())
    handle = await settle(client.jobs.get(JOB))
    for action, status in (("cancel", "cancelling"), ("pause", "pausing"), ("resume", "queued")):
        assert await settle(getattr(handle, action)()) is handle
        assert handle.status == status
    service.on(f"POST /v1/jobs/{JOB}/retry", job("queued"))
    assert (await settle(client.jobs.retry(JOB, reviews=[DATASET]))).status == "queued"
    assert service.requests[-1].headers["idempotency-key"]
    assert body(service.requests[-1]) == {"reviews": [DATASET]}
    await settle(client.jobs.retry(JOB, idempotency_key="mine"))
    assert service.requests[-1].headers["idempotency-key"] == "mine"
    service.on(f"DELETE /v1/jobs/{JOB}", {"id": JOB})
    assert (await settle(client.jobs.delete(JOB))).deleted


async def test_tables(client: Any, service: Service) -> None:
    service.on("GET /v1/jobs", {"data": [job()], "has_more": False})
    service.on(f"GET /v1/jobs/{JOB}/rounds", {"data": [{"round": 0, "candidates": 9, "selected": 5, "of_tomorrow": 1}]})
    one = {"id": ADAPTER, "name": "n", "round": 0, "created_at": NOW}
    service.on(f"GET /v1/jobs/{JOB}/checkpoints", {"data": [one]})
    as_csv, as_json = httpx.Response(200, text="round,loss\n0,1.5\n"), {"data": [{"round": 0}]}
    service.on(
        f"GET /v1/jobs/{JOB}/metrics", lambda r: as_csv if "csv" in str(r.url) else httpx.Response(200, json=as_json)
    )
    service.on(f"GET /v1/jobs/{JOB}/events", {"data": [event(1), event(2)], "has_more": True, "last_id": "2"})
    assert [found.id for found in await collect(client.jobs.list())] == [JOB]
    await collect(client.jobs.list(status="paused", limit=3))
    assert dict(service.requests[-1].url.params) == {"status": "paused", "limit": "3"}
    assert (await settle(client.jobs.rounds(JOB)))[0].selected == 5
    assert (await settle(client.jobs.checkpoints(JOB)))[0].id == ADAPTER
    assert await settle(client.jobs.metrics(JOB)) == as_json
    assert (await settle(client.jobs.metrics_csv(JOB))).startswith("round,loss")
    page = await settle(client.jobs.events(JOB, after=0, limit=2))
    assert ([found.id for found in page.data], page.has_more) == ([1, 2], True)


async def test_what_a_handle_leads_to(client: Any, service: Service) -> None:
    service.on(LOOK, job(), job(), job("succeeded", dataset=DATASET, adapter=ADAPTER))
    handle = await settle(client.jobs.get(JOB))
    with pytest.raises(NotReadyError, match="no data set yet: it is running"):
        await settle(handle.dataset())
    data = {"id": DATASET, "job": JOB, "version": 1, "task": TASK, "rows": 7, "rejected": 1, "created_at": NOW}
    service.on(f"GET /v1/datasets/{DATASET}", data)
    assert (await settle(handle.dataset())).dataset.rows == 7
    base = {"base_model": "m", "base_revision": "r", "rank": 8, "task": TASK, "created_at": NOW}
    service.on(
        f"GET /v1/adapters/{ADAPTER}", {"id": ADAPTER, "name": "n", "job": JOB, "round": 1, "final": True, **base}
    )
    assert (await settle(handle.adapter())).id == ADAPTER
    assert (await settle(handle.refresh())).status == "succeeded"
    assert "succeeded" in repr(handle)


async def test_html_cannot_be_smuggled_in(client: Any, service: Service) -> None:
    evil = "<script>alert(1)</script>"
    error = {"code": "c", "message": evil, "category": "user", "retryable": False}
    texts = {"name": evil, "stage": evil, "model": evil, "stop_reason": evil, "preset": evil, "dataset": evil}
    service.on(LOOK, job("failed", error=error, progress={"fraction": 7e9, "counts": {evil: 2}}, **texts), job(**texts))
    for _ in range(2):
        html = (await settle(client.jobs.get(JOB)))._repr_html_()
        assert "<script" not in html
        assert "&lt;script&gt;" in html
    label = {"id": DATASET, "job": evil, "version": 1, "task": TASK, "rows": 7, "rejected": 1, "created_at": NOW}
    service.on(f"GET /v1/datasets/{DATASET}", label | {"per_label": {evil: 1}})
    assert "<script" not in (await settle(client.datasets.get(DATASET)))._repr_html_()
    base = {"base_model": evil, "base_revision": evil, "rank": 8, "task": TASK, "created_at": NOW}
    service.on(
        f"GET /v1/adapters/{ADAPTER}", {"id": ADAPTER, "name": evil, "job": evil, "round": 1, "final": True, **base}
    )
    assert "<script" not in (await settle(client.adapters.get(ADAPTER)))._repr_html_()

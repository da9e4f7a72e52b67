"""Jobs over HTTP, from seeds to results, with the fake engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from afdc.errors import UsageError
from afdc_server.service.settings import load_settings
from tests.service.world import SETTINGS, World, events_of, finished, post_job, post_seeds, running, wait_for


def test_a_job_comes_to_its_end_with_everything_that_it_promises(client: httpx.Client) -> None:
    job = post_job(client, post_seeds(client), name="notes", metadata={"team": "a"})
    done = finished(client, job["id"])
    assert done["status"] == "succeeded", done["error"]
    assert done["progress"]["fraction"] == 1
    assert done["rows"] > 12
    assert done["usage"]["prompt_tokens"] >= 0
    assert done["metadata"] == {"team": "a"}
    rounds = client.get(f"/jobs/{job['id']}/rounds").json()["data"]
    assert [one["round"] for one in rounds] == list(range(len(rounds)))
    checkpoints = client.get(f"/jobs/{job['id']}/checkpoints").json()["data"]
    assert [one["id"] for one in checkpoints if one["final"]] == [done["adapter"]]


def test_events_are_gapless_and_the_last_one_says_how_it_ended(client: httpx.Client) -> None:
    job = post_job(client, post_seeds(client))["id"]
    finished(client, job)
    events = events_of(client, job)
    assert [one["id"] for one in events] == list(range(1, len(events) + 1))
    assert events[0]["kind"] == "job_queued"
    assert events[-1]["kind"] == "job_succeeded"
    rounds = [one["data"]["round"] for one in events if one["kind"] == "round_finished"]
    assert rounds == sorted(set(rounds))


def test_the_stream_is_the_same_events_and_ends_by_itself(client: httpx.Client) -> None:
    job = post_job(client, post_seeds(client))["id"]
    with client.stream("GET", f"/jobs/{job}/events", headers={"Accept": "text/event-stream"}, timeout=60) as reply:
        text = "".join(reply.iter_text())
    ids = [int(line.removeprefix("id: ")) for line in text.splitlines() if line.startswith("id: ")]
    assert ids == [one["id"] for one in events_of(client, job)]
    late = client.get(f"/jobs/{job}/events", headers={"Accept": "text/event-stream", "Last-Event-ID": str(ids[-2])})
    assert late.text.count("\nid: ") == 1


def test_an_idempotency_key_makes_one_job(client: httpx.Client) -> None:
    seeds = post_seeds(client)
    body = {"seeds": seeds, "settings": SETTINGS}
    replies = [client.post("/jobs", json=body, headers={"Idempotency-Key": "k1"}) for _ in range(3)]
    assert {reply.json()["id"] for reply in replies} == {replies[0].json()["id"]}
    assert replies[2].headers["Idempotency-Replayed"] == "true"
    other = client.post("/jobs", json={**body, "name": "x"}, headers={"Idempotency-Key": "k1"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_pause_resume_cancel_and_retry(tmp_path: Path) -> None:
    with running(tmp_path, running_jobs=1) as world, world.client() as client:
        seeds = post_seeds(client)
        first, second = post_job(client, seeds)["id"], post_job(client, seeds)["id"]
        assert client.post(f"/jobs/{second}/pause").json()["status"] == "paused"
        assert client.post(f"/jobs/{second}/retry").status_code == 409
        assert finished(client, first)["status"] == "succeeded"
        assert client.post(f"/jobs/{second}/resume").json()["status"] in {"queued", "running"}
        client.post(f"/jobs/{second}/cancel")
        assert finished(client, second)["status"] in {"cancelled", "succeeded"}
        if client.get(f"/jobs/{second}").json()["status"] == "cancelled":
            client.post(f"/jobs/{second}/retry")
            assert finished(client, second)["status"] == "succeeded"


def test_a_stopped_server_goes_on_where_it_was(tmp_path: Path) -> None:
    with running(tmp_path) as world, world.client() as client:
        job = post_job(client, post_seeds(client))["id"]
        wait_for(lambda: client.get(f"/jobs/{job}").json()["stage"])
    with running(tmp_path) as world, world.client() as client:
        assert finished(client, job)["status"] == "succeeded"


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"settings": {"loop": {"turns": 1}}}, "/settings/loop/turns"),
        ({"settings": {"engine": {"dtype": "float32"}}}, "/settings/engine"),
        ({"settings": {"train": {"rank": 128}}}, "/settings/train/rank"),
        ({"settings": {"encoder": {"model": "/etc"}}}, "/settings/encoder/model"),
        ({"settings": {"augment": {"variants": 1_000_000}}}, "/settings/augment/variants"),
    ],
)
def test_a_job_that_cannot_succeed_is_refused_at_once(
    client: httpx.Client, change: dict[str, object], pointer: str
) -> None:
    reply = client.post("/jobs", json={"seeds": post_seeds(client), **change})
    assert reply.status_code == 422
    assert reply.headers["content-type"] == "application/problem+json"
    assert [one["pointer"] for one in reply.json()["errors"]] == [pointer]


def test_preview_and_estimate_store_nothing(client: httpx.Client) -> None:
    body = {"seeds": post_seeds(client), "settings": SETTINGS}
    before = client.get("/jobs").json()["data"]
    rows = client.post("/jobs/preview", params={"rows": 6}, json=body).json()["data"]
    assert 0 < len(rows) <= 6
    assert all(row["reason"] for row in rows)
    estimate = client.post("/jobs/estimate", json=body).json()
    assert estimate["seconds"] > 0
    assert estimate["rows"] == 144
    assert client.get("/jobs").json()["data"] == before


def test_reviews_that_are_none_are_no_job(client: httpx.Client) -> None:
    seeds = post_seeds(client)
    dataset = finished(client, post_job(client, seeds)["id"])["dataset"]
    reply = client.post("/jobs", json={"seeds": seeds, "reviews": [dataset], "settings": SETTINGS})
    assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (422, "/reviews")
    row = client.get(f"/datasets/{dataset}/rows").json()["data"][0]["id"]
    body = {"reviews": [{"row": row, "decision": "accept"}]}
    reviewed = client.post(f"/datasets/{dataset}/reviews", json=body).json()["id"]
    assert client.post("/jobs", json={"seeds": seeds, "reviews": [reviewed], "settings": SETTINGS}).status_code == 202


def rows_of(client: httpx.Client, dataset: str, **params: str) -> dict[str, dict[str, Any]]:
    """By text."""
    rows: list[dict[str, Any]] = []
    after = ""
    while True:
        asked = {"limit": 100, "after": after, **params}
        page = client.get(f"/datasets/{dataset}/rows", params=asked).json()
        rows += page["data"]
        if not page["has_more"]:
            return {row["text"]: row for row in rows}
        after = page["last_id"]


def test_what_people_said_of_rows_is_gold_in_the_job_that_retry_makes(client: httpx.Client) -> None:
    first = finished(client, post_job(client, post_seeds(client))["id"])
    kept = rows_of(client, first["dataset"])
    generated = [row for row in kept.values() if row["source"] == "generated"]
    [seed, *_] = [row for row in kept.values() if row["source"] == "seed"]
    left_out = next(
        iter(rows_of(client, first["dataset"], split="rejected", source="generated").values()), generated[3]
    )
    other = {"ALPHA": "BETA", "BETA": "GAMMA", "GAMMA": "ALPHA"}
    said = [
        (generated[0], "accept", generated[0]["label"]),
        (generated[1], "relabel", other[generated[1]["label"]]),
        (left_out, "relabel", "ALPHA"),
        (seed, "relabel", other[seed["label"]]),
        (generated[2], "reject", None),
    ]
    words = [
        {"row": row["id"], "decision": decision, **({"label": label} if decision == "relabel" else {})}
        for row, decision, label in said
    ]
    reviewed = client.post(f"/datasets/{first['dataset']}/reviews", json={"reviews": words}).json()["id"]
    reply = client.post(f"/jobs/{first['id']}/retry", json={"reviews": [reviewed]})
    assert reply.status_code == 202, reply.text
    assert (reply.json()["parent"], reply.json()["reviews"]) == (first["id"], [reviewed])
    again = finished(client, reply.json()["id"])
    assert again["status"] == "succeeded", again["error"]
    gold = rows_of(client, again["dataset"], source="seed")
    for row, decision, label in said:
        if decision == "reject":
            assert row["text"] not in gold
        else:
            found = gold[row["text"]]
            assert (found["label"], found["review_state"], found["weight"]) == (label, "gold", 1.0)
    assert len(gold) == len(rows_of(client, first["dataset"], source="seed")) + 3


def test_the_operators_settings_of_jobs_hold_where_the_request_has_none(tmp_path: Path) -> None:
    with running(tmp_path, jobs={"augment": {"variants": 3}}) as world, world.client() as client:
        seeds = post_seeds(client)
        rows = client.get(f"/seeds/{seeds}").json()["report"]["rows"]
        for settings, variants in (({}, 3), ({"augment": {"temperature": 0.9}}, 3), ({"augment": {"variants": 5}}, 5)):
            estimate = client.post("/jobs/estimate", json={"seeds": seeds, "settings": settings}).json()
            assert estimate["rows"] == rows * variants


@pytest.mark.parametrize(
    ("jobs", "words"),
    [({"augment": {"variant": 3}}, "augment.variant"), ({"engine": {"dtype": "float32"}}, "of the server itself")],
)
def test_settings_that_no_job_could_have_stop_the_start(jobs: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_settings({"jobs": jobs})


def test_another_tenants_job_is_not_there(world: World, client: httpx.Client) -> None:
    job = post_job(client, post_seeds(client))["id"]
    with world.client("stranger") as stranger:
        for verb, path in (("GET", ""), ("GET", "/events"), ("GET", "/rounds"), ("POST", "/cancel"), ("DELETE", "")):
            assert stranger.request(verb, f"/jobs/{job}{path}").status_code == 404
    finished(client, job)
    assert client.delete(f"/jobs/{job}").json() == {"id": job, "deleted": True}
    assert client.get(f"/jobs/{job}").status_code == 404


def test_metrics_by_round_as_csv(client: httpx.Client) -> None:
    job = post_job(client, post_seeds(client))["id"]
    finished(client, job)
    lines = client.get(f"/jobs/{job}/metrics", params={"format": "csv"}).text.splitlines()
    assert lines[0].startswith("round,candidates,selected")
    assert len(lines) == 1 + len(client.get(f"/jobs/{job}/rounds").json()["data"])


def test_waiting_returns_when_the_job_has_moved(client: httpx.Client) -> None:
    job = post_job(client, post_seeds(client))["id"]
    reply = client.get(f"/jobs/{job}")
    changed = client.get(f"/jobs/{job}", params={"wait": 20}, headers={"If-None-Match": reply.headers["etag"]})
    assert changed.headers["etag"] != reply.headers["etag"] or changed.status_code == 304
    done = finished(client, job)
    tag = client.get(f"/jobs/{job}").headers["etag"]
    assert client.get(f"/jobs/{job}", headers={"If-None-Match": tag}).status_code == 304
    assert done["status"] == "succeeded"

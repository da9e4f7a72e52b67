"""Jobs whose engine, trainer, inputs or version fail them: each says so, can be tried again, and holds up no other."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from afdc.errors import EngineDiedError, StorageError, TrainerError
from afdc.layout import RunLayout
from afdc.task import Task
from afdc.training import TrainJob, TrainResult
from afdc_pipeline.seams import Generated, GenerateRequest, Health, Progress, Scores
from afdc_server.db.schema import service_jobs
from afdc_server.jobs import store
from afdc_server.jobs.failures import describe_error
from afdc_server.ledger.schema import stages
from afdc_server.service.wiring import HeavyParts
from tests.fakes.trainer import FakeTrainer
from tests.service.faults import SETTINGS, stages_of
from tests.service.world import (
    SlottedEngine,
    World,
    events_of,
    fake_parts,
    finished,
    make_settings,
    post_job,
    post_seeds,
    running,
    wait_for,
)


class Flaky(SlottedEngine):
    """Raises an error at one call, or from there on."""

    def __init__(self, error: Exception, at: int, *, forever: bool = False) -> None:
        super().__init__()
        self.error: Exception | None = error
        self._at = at
        self._forever = forever

    async def health(self) -> Health:
        if self.error is not None and self._forever and len(self.calls) >= self._at:
            raise self.error
        return "ready"

    async def score(self, texts: Sequence[str], task: Task, adapter: str | None = None) -> Scores:
        self._maybe()
        return await super().score(texts, task, adapter)

    async def generate(self, requests: Sequence[GenerateRequest], task: Task | None = None) -> AsyncIterator[Generated]:
        async for one in super().generate(requests, task):
            self._maybe()
            yield one

    def _maybe(self) -> None:
        if self.error is not None and len(self.calls) >= self._at:
            error = self.error
            if not self._forever:
                self.error = None
            raise error


@pytest.mark.parametrize("at", [3, 14, 18])
def test_an_engine_that_dies_once_fails_the_job_which_goes_on_when_it_is_tried_again(tmp_path: Path, at: int) -> None:
    with running(tmp_path, Flaky(EngineDiedError("gone"), at)) as world, world.client() as client:
        job = post_job(client, post_seeds(client))["id"]
        failed = finished(client, job)
        assert failed["status"] == "failed"
        assert (failed["error"]["code"], failed["error"]["category"], failed["error"]["retryable"]) == (
            "engine_died",
            "server",
            True,
        )
        client.post(f"/jobs/{job}/retry")
        assert finished(client, job)["status"] == "succeeded"
        kinds = [event["kind"] for event in events_of(client, job)]
        assert (kinds.count("job_failed"), kinds.count("job_succeeded")) == (1, 1)


def test_an_engine_that_is_gone_fails_the_running_jobs_and_not_the_waiting_ones(tmp_path: Path) -> None:
    engine = Flaky(EngineDiedError("gone"), 3, forever=True)
    with running(tmp_path, engine, running_jobs=1) as world, world.client() as client:
        seeds = post_seeds(client)
        first, *others = [post_job(client, seeds)["id"] for _ in range(4)]
        assert finished(client, first)["error"]["code"] == "engine_died"
        time.sleep(2.5)  # turns of the runner, in which it would have taken the next
        assert {client.get(f"/jobs/{job}").json()["status"] for job in others} == {"queued"}
        assert httpx.get(f"{world.address}/readyz").status_code == 503
        engine.error = None
        assert {finished(client, job)["status"] for job in others} == {"succeeded"}


def test_an_engine_that_is_given_up_is_told_once_to_whoever_runs_the_server(tmp_path: Path) -> None:
    told: list[BaseException] = []
    with running(tmp_path, Flaky(EngineDiedError("gone"), 3, forever=True)) as world, world.client() as client:
        world.services.runner.on_engine_lost = told.append
        finished(client, post_job(client, post_seeds(client))["id"])
        wait_for(lambda: told, 30)
        time.sleep(2.5)  # turns of the runner
    assert [str(error) for error in told] == ["gone"]


def test_what_the_server_could_not_do_is_told_without_its_paths_and_hosts() -> None:
    for error in (
        StorageError("cannot write /srv/afdc/x"),
        EngineDiedError("http://gpu-7:8000 is away"),
        OSError("/x"),
    ):
        found = describe_error(error)
        assert (found["category"], found["retryable"]) == ("server", True)
        assert not re.search("srv|gpu-7|/x", found["message"])


def test_a_poisoned_text_is_rejected_with_a_reason_and_the_others_go_on(tmp_path: Path) -> None:
    notes = ["the harbour was quiet all morning BETA", "two lamps and a POISON in the cellar ALPHA", "call me GAMMA"]
    with running(tmp_path) as world, world.client() as client:
        reply = client.post("/seeds", json={"examples": [{"text": note} for note in notes], "kind": "unlabeled"})
        assert reply.status_code == 201, reply.text
        job = post_job(client, post_seeds(client), unlabeled=reply.json()["id"], settings=SETTINGS)["id"]
        done = finished(client, job)
        assert done["status"] == "succeeded", done["error"]
        pages = {
            split: client.get(f"/datasets/{done['dataset']}/rows", params={"limit": 100, "split": split}).json()["data"]
            for split in ("default", "rejected")
        }
        assert not [row for row in pages["default"] if "POISON" in row["text"]]
        [refused] = [row for row in pages["rejected"] if "POISON" in row["text"]]
        assert refused["reason"]
        texts = {row["text"] for split in pages.values() for row in split}
        assert texts >= set(notes)
        assert done["rows"] > 20


def flaky_trainer(tmp_path: Path, fail: Callable[[TrainJob], None]) -> HeavyParts:
    parts = fake_parts(SlottedEngine())

    class Trainer(FakeTrainer):
        async def fit(self, job: TrainJob) -> TrainResult:
            fail(job)
            return await super().fit(job)

    def trainer(_layout: RunLayout, _progress: Progress) -> Trainer:
        return Trainer()

    return HeavyParts(parts.model, parts.engine, trainer, parts.encoder, parts.check_lengths)


@contextlib.contextmanager
def world_of(data: Path, parts: HeavyParts, **options: Any) -> Iterator[World]:
    world = World(make_settings(data, **options), parts)
    world.start()
    try:
        yield world
    finally:
        world.stop()


def test_a_trainer_that_fails_fails_its_round_once_and_the_next_try_trains_on(tmp_path: Path) -> None:
    tries: list[str] = []

    def fail(job: TrainJob) -> None:
        tries.append(job.name)
        if len(tries) == 2:
            raise TrainerError("killed by SIGKILL")

    with world_of(tmp_path, flaky_trainer(tmp_path, fail)) as world, world.client() as client:
        job = post_job(client, post_seeds(client))["id"]
        assert finished(client, job)["error"]["code"] == "trainer"
        client.post(f"/jobs/{job}/retry")
        assert finished(client, job)["status"] == "succeeded"
        assert tries[0] not in tries[1:], "what was trained is not trained again"
        assert tries[1] == tries[2]


def test_a_job_of_another_model_fails_with_both_names(tmp_path: Path) -> None:
    with running(tmp_path) as world, world.client() as client:
        seeds = post_seeds(client)
        job = post_job(client, seeds)["id"]
        client.post(f"/jobs/{job}/pause")
        wait_for(lambda: client.get(f"/jobs/{job}").json()["status"] in {"paused", "succeeded"})
        other = post_job(client, seeds)["id"]
        client.post(f"/jobs/{other}/pause")
        wait_for(lambda: client.get(f"/jobs/{other}").json()["status"] in {"paused", "succeeded"})
        with world.services.db.write() as connection:
            where = service_jobs.c.id == other
            connection.execute(update(service_jobs).where(where).values(status="queued", model="another/model"))
        failed = finished(client, other)
        assert failed["status"] == "failed"
        assert "another/model" in failed["error"]["message"]
        assert "fake" in failed["error"]["message"]
        assert failed["error"]["retryable"]


def test_a_job_that_this_version_cannot_read_fails_and_holds_up_no_other(tmp_path: Path) -> None:
    with running(tmp_path, running_jobs=1) as world, world.client() as client:
        seeds = post_seeds(client)
        first, broken, last = (post_job(client, seeds)["id"] for _ in range(3))
        with world.services.db.write() as connection:
            store.change(connection, broken, config={"loop": {"unknown": 1}})
        assert finished(client, broken)["error"]["code"] == "internal"
        assert finished(client, first)["status"] == "succeeded"
        assert finished(client, last)["status"] == "succeeded"


def test_a_stage_made_from_other_inputs_is_an_end_and_no_endless_circle(tmp_path: Path) -> None:
    with running(tmp_path) as world, world.client() as client:
        job = post_job(client, post_seeds(client))["id"]
        wait_for(lambda: stages_of(tmp_path, job) > 1)
        client.post(f"/jobs/{job}/pause")
        wait_for(lambda: client.get(f"/jobs/{job}").json()["status"] in {"paused", "succeeded"})
        if client.get(f"/jobs/{job}").json()["status"] == "succeeded":
            pytest.skip("the job was faster than the pause")
        with world.services.db.write() as connection:
            connection.execute(update(stages).where(stages.c.job == job).values(inputs="0" * 64))
        client.post(f"/jobs/{job}/resume")
        failed = finished(client, job)
        assert (failed["error"]["code"], failed["error"]["retryable"]) == ("conflict", True)

"""Cells are computed once, by the real loop over the fakes of the tests; the cache tells the same as a fresh run."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from afdc.adapter import verify_adapter
from afdc.errors import UsageError
from afdc.task import Task
from afdc_pipeline.seams import GenerateRequest, Sampling
from benchmarks.quality import runner
from benchmarks.quality.bench import Bench, Options
from benchmarks.quality.cache import KeyValue, code_digest
from benchmarks.quality.cached_engine import CachedEngine
from benchmarks.quality.encoder import Encoder, Vectors
from benchmarks.quality.runner import Cell, compute, record_path, stored
from benchmarks.quality.tasks import DrawSpec, draw_rows, read_folder
from benchmarks.quality.trainers import SharedTrainer
from tests.fakes.encoder import FakeEncoder
from tests.fakes.engine import FakeEngine
from tests.fakes.trainer import FakeTrainer

TASK = Task.model_validate({"instruction": "Say apple or pear.", "labels": ["apple", "pear"]})
SPEC = DrawSpec(shots=4, gold=12, unlabeled=6)


class LengthEncoder(Encoder):
    """Vectors from the letters of a text, in place of the sentence encoder."""

    def _embed(self, texts: list[str]) -> Vectors:
        rows = np.array([[text.count(char) + 0.1 for char in "abcdefgh"] for text in texts], dtype=np.float32)
        vectors: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return vectors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "fruit"
    path.mkdir()
    (path / "task.json").write_text(TASK.model_dump_json())
    words = ["red", "green", "sweet", "sour", "small", "large", "ripe", "old", "fresh", "dry"]
    for name, start, count in (("train", 0, 40), ("test", 40, 20)):
        rows = [
            {"text": f"The {words[i % 10]} {label} number {i * 7919} fell", "label": label}
            for i in range(start, start + count)
            for label in TASK.names
        ]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(runner, "_model_revision", lambda *_: "rev0")
    options = Options(work=tmp_path / "work", members=2)
    answers = KeyValue(options.work / "answers.db")
    engine = CachedEngine(FakeEngine(), answers, options.work / "locks")
    info = await engine.start()
    trainer = SharedTrainer(FakeTrainer(), options.work / "adapters", "code")
    return Bench(options, engine, info, trainer, LengthEncoder(answers, "cpu"), FakeEncoder(TASK))


def calls(bench: Bench) -> list[str]:
    inner: Any = bench.engine.inner
    return [call for call in inner.calls if call.startswith(("score", "generate"))]


@pytest.mark.parametrize("method", ["zero-shot", "seeds-only", "augment", "paper", "default", "unlabeled", "gold"])
async def test_a_method_ends_with_a_record(bench: Bench, folder: Path, method: str) -> None:
    cell = Cell(folder, SPEC, method)
    assert stored(cell, bench.options) is None
    record = await compute(bench, cell)
    assert stored(cell, bench.options) == json.loads(json.dumps(record))
    assert 0 <= record["accuracy"] <= 1
    if method in ("augment", "paper", "default", "unlabeled"):
        assert set(record["data"]["by_label"]) == set(TASK.names)
        assert record["judge"]["kind"] == "lora"
    if method == "unlabeled":
        assert record["data"]["rows_unlabeled"] > 0


async def test_a_data_set_without_rows_is_described(bench: Bench, folder: Path) -> None:
    nothing = {"select": {"threshold": 1.0}}
    record = await compute(bench, Cell(folder, SPEC, "default", nothing, "nothing"))
    assert record["data"]["rows"] == 0
    assert record["data"]["precision"] is None
    assert record["data"]["coverage"] == 0


def test_sweeps_that_start_at_once_share_one_store(tmp_path: Path) -> None:
    start = Barrier(8)

    def open_store(number: int) -> KeyValue:
        start.wait()
        store = KeyValue(tmp_path / str(number) / "answers.db")
        store.put({"key": b"value"})
        return store

    with ThreadPoolExecutor(8) as pool:
        for number in range(16):
            list(pool.map(open_store, [number] * 8))


async def test_what_was_asked_before_is_not_asked_again(bench: Bench, folder: Path) -> None:
    first = await compute(bench, Cell(folder, SPEC, "default"))
    asked, fitted = len(calls(bench)), len(bench.trainer.inner.jobs)  # type: ignore[attr-defined]  # the fake's own list
    record_path(Cell(folder, SPEC, "default"), bench.options).unlink()
    again = await compute(bench, Cell(folder, SPEC, "default"))
    assert len(calls(bench)) == asked
    round_zero = [job for job in bench.trainer.inner.jobs[fitted:] if job.round == 0]  # type: ignore[attr-defined]  # as above
    assert not round_zero
    same = ("accuracy", "macro_f1", "data", "tokens")
    assert {name: again[name] for name in same} == {name: first[name] for name in same}


async def test_fits_that_differ_by_their_temperature_alone_are_one(bench: Bench, folder: Path, tmp_path: Path) -> None:
    await compute(bench, Cell(folder, SPEC, "gold"))
    (job,) = bench.trainer.inner.jobs  # type: ignore[attr-defined]  # the fake's own list
    found = []
    for temperature in (1.0, 2.5):
        update = {"temperature": temperature, "adapters": tmp_path / str(temperature)}
        result = await bench.trainer.fit(job.model_copy(update=update))
        assert result.adapter is not None
        found.append(verify_adapter(result.adapter))
    assert len(bench.trainer.inner.jobs) == 1  # type: ignore[attr-defined]  # as above
    assert [manifest.temperature for manifest in found] == [1.0, 2.5]
    assert found[0].files == found[1].files


async def test_a_failed_attempt_is_gone_on_with(bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell(folder, SPEC, "default")
    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.quality.afdc_method.judge", None)
        with pytest.raises(TypeError):
            await compute(bench, cell)
    asked, fits = len(calls(bench)), len(bench.trainer.inner.jobs)  # type: ignore[attr-defined]  # the fake's own list
    record = await compute(bench, cell)
    assert record["seconds"] > 0
    assert len(bench.trainer.inner.jobs) == fits + 1  # type: ignore[attr-defined]  # as above; the judge's alone
    assert not [call for call in calls(bench)[asked:] if call.startswith("generate")]


async def test_ablations_share_the_generated_texts(bench: Bench, folder: Path) -> None:
    await compute(bench, Cell(folder, SPEC, "default"))
    before = len([call for call in calls(bench) if call.startswith("generate")])
    await compute(bench, Cell(folder, SPEC, "default", {"select": {"balance": False}}, "select.balance"))
    assert len([call for call in calls(bench) if call.startswith("generate")]) == before


async def test_a_result_of_other_code_is_stale(bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell(folder, SPEC, "default")
    await compute(bench, cell)
    monkeypatch.setattr(runner, "code_of", lambda _: "other")
    assert stored(cell, bench.options) is None
    assert stored(cell, bench.options, any_code=True) is not None


async def test_a_result_that_the_repository_carries_is_not_computed_again(
    bench: Bench, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(folder, SPEC, "default")
    record = await compute(bench, cell)
    monkeypatch.setattr(runner, "KEPT", tmp_path / "kept")
    place = record_path(cell, bench.options)
    carried = tmp_path / "kept" / place.parent.name / place.name
    carried.parent.mkdir(parents=True)
    place.rename(carried)
    assert stored(cell, bench.options) == record
    monkeypatch.setattr(runner, "code_of", lambda _: "other")
    assert stored(cell, bench.options) is None


async def test_a_key_names_what_counts_and_nothing_else(bench: Bench, folder: Path) -> None:
    options = bench.options

    def place(method: str = "default", **change: Any) -> Path:
        overrides = change.pop("overrides", {})
        return record_path(Cell(folder, replace(SPEC, **change), method, overrides), options)

    assert place() == place(gold=999)
    assert place("gold") != place("gold", gold=999)
    assert place("seeds-only") == place("seeds-only", overrides={"select": {"balance": True}})
    assert len({place(), place(shots=3), place(draw=1), place(overrides={"select": {"balance": True}})}) == 4
    assert place() != record_path(Cell(folder, SPEC, "default"), replace(options, engine="vllm"))
    of_rounds = {"train": {"all_rows": False}}
    assert place("seeds-only", overrides=of_rounds) == place("seeds-only")
    assert place("default", overrides=of_rounds) != place("default")
    (folder / "test.jsonl").write_text('{"text": "one apple", "label": "apple"}\n')
    runner._folder.cache_clear()  # noqa: SLF001,RUF100  # a sweep reads a folder once
    assert place() != place(test_limit=1)


async def test_a_draw_keeps_its_parts_apart(folder: Path) -> None:
    drawn = draw_rows(read_folder(folder), SPEC)
    seeds = {row.text for row in drawn.seeds}
    assert len(seeds) == 8
    assert drawn.gold[:8] == drawn.seeds
    assert len(drawn.gold) == 12
    assert not seeds & {row.text for row in drawn.unlabeled}
    assert not {row.text for row in drawn.unlabeled} & {row.text for row in drawn.test}
    assert drawn == draw_rows(read_folder(folder), SPEC)
    assert drawn.seeds != draw_rows(read_folder(folder), replace(SPEC, draw=1)).seeds
    assert drawn.test == draw_rows(read_folder(folder), replace(SPEC, draw=1)).test


def test_a_task_without_labels_is_refused(folder: Path) -> None:
    (folder / "task.json").write_text('{"instruction": "Name the product.", "labels": null}')
    with pytest.raises(UsageError, match="no labels"):
        read_folder(folder)


async def test_the_cache_answers_in_full(bench: Bench) -> None:
    engine = bench.engine
    requests = [GenerateRequest(f"r{i}", f"- pear\n{i}", 2, Sampling(seed=i)) for i in range(3)]
    first = {one.id: one async for one in engine.generate(requests)}
    used = engine.usage()
    again = {one.id: one async for one in engine.generate(requests)}
    assert again == first
    assert engine.usage().completion_tokens == 2 * used.completion_tokens
    scores = await engine.score(["an apple", "POISON", "a pear"], TASK)
    assert set(scores.errors) == {1}
    once_more = await engine.score(["a pear", "an apple"], TASK)
    assert np.array_equal(once_more.logprobs, scores.logprobs[[2, 0]])
    assert engine.saved_seconds > 0


def test_a_killed_sweep_leaves_no_worker_behind() -> None:
    script = (
        "import os, time\n"
        "from pathlib import Path\n"
        "from benchmarks.quality.bench import Options\n"
        "from benchmarks.quality.runner import worker_pool\n"
        "if __name__ == '__main__':\n"
        "    pool = worker_pool(1, Options(Path()))\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as sweep:
        assert sweep.stdout is not None
        worker = os.pidfd_open(int(sweep.stdout.readline()))
        sweep.kill()
    ended, _, _ = select.select([worker], [], [], 30)
    os.close(worker)
    assert ended


def test_code_is_compared_without_its_comments(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text('"""Doc."""\nx = 1  # why\n')
    first = code_digest([tmp_path])
    path.write_text("x  =  1\n")
    assert code_digest([tmp_path]) == first
    path.write_text("x = 2\n")
    assert code_digest([tmp_path]) != first


def test_what_does_not_count_is_named_by_its_folder_or_module(tmp_path: Path) -> None:
    for name in ("a.py", "estimate.py", "encoder/b.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    first = code_digest([tmp_path], without=("estimate", "encoder"))
    (tmp_path / "estimate.py").write_text("x = 2\n")
    (tmp_path / "encoder/b.py").write_text("x = 2\n")
    assert code_digest([tmp_path], without=("estimate", "encoder")) == first
    assert code_digest([tmp_path], without=("estimate",)) != first

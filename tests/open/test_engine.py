"""The engine on an open task: the prompt of the trainer, its terminator, and the probe of an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from afdc.adapter import MANIFEST_FILE, Probe, verify_adapter
from afdc.errors import AdapterError, InputError
from afdc.prompting import PromptCodec
from afdc.task import Task
from afdc_pipeline.seams import GenerateRequest, Sampling
from afdc_server.engine.backend import AdapterSlot, DrawAnswer
from tests.fakes.backend import FakeBackend, World
from tests.fakes.served import Letters, started, write_adapter

TASK = Task(instruction="N", labels=None)
CODEC = PromptCodec(Letters(), TASK)


async def test_a_text_is_asked_as_the_trainer_asks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[int], tuple[int, ...]]] = []
    real = FakeBackend.draw

    async def draw(
        self: FakeBackend,
        prompt: Sequence[int],
        n: int,
        sampling: Sampling,
        adapter: AdapterSlot | None,
        ends: Sequence[int] = (),
    ) -> DrawAnswer:
        asked.append((list(prompt), tuple(ends)))
        return await real(self, prompt, n, sampling, adapter, ends)

    monkeypatch.setattr(FakeBackend, "draw", draw)
    request = GenerateRequest("a", "x y", 2, Sampling(max_tokens=4))
    async with started(World()) as engine:
        [answer] = [one async for one in engine.generate([request], TASK)]
        [_] = [one async for one in engine.generate([request])]
    assert len(answer.completions) == 2
    assert asked == [(CODEC.prompt_ids("x y"), (CODEC.terminator,)), ([ord(c) for c in "x y"], ())]


async def test_an_open_task_has_no_labels_to_score() -> None:
    async with started(World()) as engine:
        with pytest.raises(InputError, match="no labels"):
            await engine.score(["x"], TASK)


def open_adapter(folder: Path, template: str, logprob: float, answer: str | None = "ab") -> None:
    """Turn the adapter of `folder` into one of the open task."""
    path = folder / MANIFEST_FILE
    manifest = json.loads(path.read_bytes())
    probe = Probe(text="x", answer=answer, logprobs=(logprob,))
    manifest |= {"task": TASK.model_dump(), "template_hash": template, "probes": [probe.model_dump()]}
    path.write_text(json.dumps(manifest))


async def test_an_adapter_is_probed_with_the_answer_of_its_seed(tmp_path: Path) -> None:
    world = World(likely={ord("a"), ord("b"), CODEC.terminator})  # each of them has -0.01
    async with started(world) as engine:
        write_adapter(tmp_path / "good", engine)
        open_adapter(tmp_path / "good", engine.template_hash(TASK), -0.03)
        assert (await engine.load_adapter(tmp_path / "good")).task.is_open
        write_adapter(tmp_path / "bad", engine, seed=2.0)
        open_adapter(tmp_path / "bad", engine.template_hash(TASK), -2.0)
        with pytest.raises(AdapterError, match="answers its probes differently"):
            await engine.load_adapter(tmp_path / "bad")


async def test_a_probe_without_its_answer_is_refused(tmp_path: Path) -> None:
    async with started(World()) as engine:
        write_adapter(tmp_path / "a", engine)
        open_adapter(tmp_path / "a", engine.template_hash(TASK), -0.1, answer=None)
    with pytest.raises(AdapterError, match="have an answer"):
        verify_adapter(tmp_path / "a")

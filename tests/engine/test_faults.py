"""The real engine process is killed, and the work goes on."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afdc.engine_config import EngineConfig
from afdc.errors import EngineDiedError
from afdc.task import Task
from afdc_pipeline.seams import Generated, GenerateRequest, Sampling
from afdc_server.engine.build import make_engine
from afdc_server.models import ModelRef

pytestmark = pytest.mark.engine

OWNER = """
import asyncio, sys
from pathlib import Path
from afdc.engine_config import EngineConfig
from afdc_server.engine.build import make_engine
from afdc_server.models import resolve_model

async def main():
    engine = make_engine(resolve_model("", "cpu"), EngineConfig(max_model_len=256), Path(sys.argv[1]))
    await engine.start()
    print(*engine.supervisor.backend.pids(), flush=True)
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_a_killed_engine_comes_back_with_its_adapters_and_answers_everything(
    engine: Any, loaded: list[str], task: Task
) -> None:
    texts = [f"text number {i}" for i in range(6)]
    before = [(await engine.score(texts, task, name)).logprobs for name in loaded]
    restarts = engine.usage().restarts
    requests = [
        GenerateRequest(
            str(i), f"Story {i}:", n=2, sampling=Sampling(max_tokens=60 if i else 2, seed=i), adapter=loaded[i % 2]
        )
        for i in range(24)
    ]
    answers: list[Generated] = []
    async for answer in engine.generate(requests):
        if not answers:
            for pid in engine.supervisor.backend.pids():
                os.kill(pid, signal.SIGKILL)
        answers.append(answer)
    assert sorted(a.id for a in answers) == sorted(r.id for r in requests)
    assert all(len(a.completions) == 2 and not a.error for a in answers)
    assert engine.usage().restarts == restarts + 1
    for name, rows in zip(loaded, before, strict=True):
        np.testing.assert_allclose((await engine.score(texts, task, name)).logprobs, rows, atol=1e-3)


async def test_a_stopped_engine_is_found_by_the_watchdog(
    engine: Any, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.health()
    monkeypatch.setattr(engine.supervisor, "hang_timeout_s", 5.0)
    restarts = engine.usage().restarts
    for pid in engine.supervisor.backend.pids():
        os.kill(pid, signal.SIGSTOP)
    waiting = asyncio.ensure_future(engine.score(["is anybody there"], task))
    await asyncio.sleep(7)
    monkeypatch.setattr(engine.supervisor, "hang_timeout_s", 180.0)
    assert np.isfinite((await waiting).logprobs).all()
    assert engine.usage().restarts == restarts + 1


async def test_health_answers(engine: Any) -> None:
    await engine.health()


async def test_a_start_that_hangs_leaves_no_process(model: ModelRef, tmp_path: Path) -> None:
    import afdc_server.engine.vllm_backend  # noqa: F401  # the import is not what hangs here

    before = set(multiprocessing.active_children())
    made = make_engine(model, EngineConfig(device="cpu", max_model_len=256, start_timeout_s=20), tmp_path)
    starting = asyncio.ensure_future(made.start())
    while not (born := [child for child in multiprocessing.active_children() if child not in before]):
        assert not starting.done()
        await asyncio.sleep(0.1)
    bystander = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)
    bystander.start()
    pids = [child.pid for child in born if child.pid is not None]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EngineDiedError, match="start_timeout_s"):
        await starting
    assert not any(map(runs, pids))
    assert bystander.is_alive(), "only the engine's own processes are ended"
    bystander.kill()
    bystander.join()
    await made.close()


@pytest.mark.slow
def test_the_engine_does_not_outlive_a_killed_owner(tmp_path: Path) -> None:
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    owner = subprocess.Popen([sys.executable, str(script), str(tmp_path / "logs")], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pids = [int(word) for word in owner.stdout.readline().split()]
    assert pids
    children = [child for pid in pids for child in children_of(pid)]
    owner.kill()
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 60  # a moment on an idle machine
    while time.monotonic() < deadline and any(map(runs, [*pids, *children])):
        time.sleep(0.2)
    assert not [pid for pid in [*pids, *children] if runs(pid)]


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    """True for a process that is neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

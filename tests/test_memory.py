"""Memory that ran out is known by the type of the error, and by its message where there is no type."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afdc.errors import EngineDiedError
from afdc.memory import names_out_of_memory
from afdc_server.engine.starting import Starter
from afdc_trainer.loop import is_out_of_memory
from tests.engine.test_supervisor import nothing
from tests.fakes.backend import FakeBackend, World


@pytest.mark.parametrize(
    "text",
    [
        "Traceback (most recent call last):\n  ...\ntorch.OutOfMemoryError: Tried to allocate 2.00 GiB",
        "(EngineCore pid=7) ERROR 11-23 torch.cuda.OutOfMemoryError: Tried to allocate",
        "numpy._core._exceptions._ArrayMemoryError: Unable to allocate\nMemoryError",
        "MemoryError: no room",
        "torch.AcceleratorError: CUDA error: out of memory",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
        "ValueError: Free memory on device cuda:0 (3/80 GiB) is less than desired GPU memory utilization (0.9, 72 GiB)",
    ],
)
def test_every_way_to_say_it(text: str) -> None:
    assert names_out_of_memory(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "RuntimeError: shapes differ",
        "    except torch.OutOfMemoryError:\n        raise",
        "    raise MemoryError from x",
    ],
)
def test_other_errors_and_lines_of_code_are_none(text: str) -> None:
    assert not names_out_of_memory(text)


def test_the_trainer_knows_types_before_messages() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))


async def test_an_engine_that_ran_out_of_memory_says_so_and_an_earlier_one_does_not_count(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("torch.OutOfMemoryError: CUDA out of memory. An engine of yesterday.\n")
    world = World()

    def create() -> FakeBackend:
        return FakeBackend(world)

    starter = Starter(create, nothing, timeout_s=5, max_restarts=0, log=log)
    with pytest.raises(EngineDiedError, match="says why"):
        await starter.replace(await starter.start())
    dead = await starter.start()
    with log.open("a") as stream:
        stream.write("(EngineCore pid=9) torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n")
    with pytest.raises(EngineDiedError, match="Memory ran out"):
        await starter.replace(dead)

"""What the supervisor needs from a raw engine: token ids in, log-probs or completions out, adapters by slot.

`VllmBackend` implements it with vLLM. Every call raises EngineDiedError when the engine process is gone,
RequestRejectedError when this one request can never succeed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from afdc_pipeline.seams import Completion, Sampling


@dataclass(frozen=True, slots=True)
class AdapterSlot:
    """A LoRA adapter as the engine knows it. `number` is unique in the life of the engine object and never reused."""

    name: str
    number: int
    folder: Path


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """Log-probs (natural log, full vocabulary, before temperature) of the ids that were asked for, in their order."""

    logprobs: tuple[float, ...]
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class DrawAnswer:
    """Completions in the order of the draws."""

    completions: tuple[Completion, ...]
    cached_tokens: int


class Backend(Protocol):
    """One engine process. It is started once, and when it dies a new object takes its place."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def read(self, prompt: Sequence[int], ids: Sequence[int], adapter: AdapterSlot | None) -> ReadAnswer: ...

    async def draw(
        self,
        prompt: Sequence[int],
        n: int,
        sampling: Sampling,
        adapter: AdapterSlot | None,
        ends: Sequence[int] = (),
    ) -> DrawAnswer:
        """n continuations. `ends`: ids that end one, beside those that the model itself names."""
        ...

    async def add_adapter(self, adapter: AdapterSlot) -> None: ...

    async def remove_adapter(self, adapter: AdapterSlot) -> None: ...

    async def lend_device(self) -> None:
        """Free device memory while nothing runs. Where it raises, the engine goes on as before."""
        ...

    async def reclaim_device(self) -> None: ...

    def alive(self) -> bool:
        """True while the engine process runs. Cheap: asked several times a second."""
        ...

    def steps(self) -> int:
        """Number of engine steps that have reported back: stands still while the engine hangs."""
        ...

    def kill(self) -> None:
        """End the engine process at once, also one that is still starting."""
        ...

"""Everything a running job holds: its inputs, its settings and the seams."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afdc.config import RunConfig, SelectConfig
from afdc.layout import RunLayout
from afdc.task import Example, Task
from afdc_pipeline.holdout import Fold
from afdc_pipeline.learning import learns_from_all
from afdc_pipeline.rows import Seed
from afdc_pipeline.seams import (
    DuplicateIndex,
    Encoder,
    Engine,
    EngineInfo,
    EngineUsage,
    Ledger,
    Progress,
    RowStore,
    StageKey,
    Trainer,
)
from afdc_pipeline.select.selector import scaled


@dataclass(frozen=True)
class JobInputs:
    """What the user gave, validated.

    `unlabeled` is called to stream the real texts, so that a file of any size stays on disk; None without
    one. `unlabeled_digest` is the hash of that file.
    """

    job: str
    task: Task
    seeds: tuple[Seed, ...]
    eval: tuple[Example, ...] = ()
    unlabeled: Callable[[], Iterable[str]] | None = None
    unlabeled_digest: str = ""

    @property
    def training_seeds(self) -> tuple[Seed, ...]:
        """D0 without the seeds held out to gate adapters."""
        return tuple(seed for seed in self.seeds if not seed.holdout)

    @property
    def holdout_seeds(self) -> tuple[Seed, ...]:
        return tuple(seed for seed in self.seeds if seed.holdout)


@dataclass
class Meter:
    """Engine usage since the last reading, so that each commit carries what it cost."""

    engine: Engine
    _last: EngineUsage = field(default_factory=EngineUsage)

    def take(self) -> dict[str, float]:
        """Counters spent since the last call."""
        now, last = self.engine.usage(), self._last
        self._last = now
        return {
            "prompt_tokens": now.prompt_tokens - last.prompt_tokens,
            "completion_tokens": now.completion_tokens - last.completion_tokens,
            "cached_tokens": now.cached_tokens - last.cached_tokens,
            "engine_seconds": now.busy_seconds - last.busy_seconds,
            "startup_seconds": now.startup_seconds - last.startup_seconds,
        }


@dataclass
class JobContext:
    """The job as the stages see it."""

    inputs: JobInputs
    config: RunConfig
    layout: RunLayout
    engine: Engine
    info: EngineInfo
    trainer: Trainer
    ledger: Ledger
    store: RowStore
    open_index: Callable[[Path], DuplicateIndex]
    progress: Progress
    meter: Meter
    encoder: Encoder | None = None
    """None where `encoder.labeller` is off."""
    clock: Callable[[], float] = time.monotonic
    loaded: dict[str, Path] = field(default_factory=dict)
    """Adapters live in the engine, least recently used first: name -> folder."""

    @property
    def job(self) -> str:
        return self.inputs.job

    @property
    def task(self) -> Task:
        return self.inputs.task

    @property
    def labelling_encoder(self) -> Encoder | None:
        """The encoder that labels D1; None for an open task, whose answers it cannot give."""
        return None if self.task.is_open else self.encoder

    def selecting(self, fold: Fold | None = None) -> SelectConfig:
        """The settings of selection, `agreement` settled; of a fold with caps for the texts that it keeps."""
        chosen = self.config.select
        if chosen.agreement is None:
            chosen = chosen.model_copy(update={"agreement": self.labelling_encoder is None})
        return chosen if fold is None else scaled(chosen, 1 - 1 / fold.of)

    def learns_from(self, decision: Mapping[str, Any]) -> bool:
        """Whether the adapters of the next round learn from the text of this row of decisions."""
        return bool(decision["distribution" if learns_from_all(self.config, self.task) else "keep"])

    @property
    def draws_a_round(self) -> int:
        """Texts that one augment round asks for."""
        seeds = len(self.inputs.training_seeds)
        return seeds * self.config.augment.variants_of(seeds)


class SilentProgress:
    """Progress that nobody watches."""

    def stage(self, key: StageKey, title: str, total: int | None) -> None:
        """Ignored."""

    def advance(self, done: int, **counts: float) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""

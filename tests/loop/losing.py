"""Adapters that lose on gold or do not load: engines that act up at certain names, and seeds that they know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from afdc.adapter import AdapterManifest
from afdc.errors import AdapterError
from afdc.task import Task
from afdc_pipeline.rows import Seed
from afdc_pipeline.seams import Scores
from tests.fakes.engine import FakeEngine
from tests.fakes.job import make_seeds


def named_seeds(holdout: int = 0) -> tuple[Seed, ...]:
    """`make_seeds`, with texts that name their label: the fake engine knows them."""
    return tuple(Seed(s.id, f"{s.text} {s.label}", s.label, s.holdout) for s in make_seeds(holdout=holdout))


class Losing(FakeEngine):
    """Adapters with one of `parts` in their name are wrong on the named seeds, or on the first `lost` of them."""

    def __init__(self, *parts: str, noise: float = 0.01, lost: int | None = None) -> None:
        super().__init__(noise=noise)
        self.parts = parts
        self.seeds = {seed.text for seed in named_seeds()}
        self.lost = {seed.text for seed in named_seeds()[:lost]}

    async def score(self, texts: Sequence[str], task: Task, adapter: str | None = None) -> Scores:
        scores = await super().score(texts, task, adapter)
        if adapter and any(part in adapter for part in self.parts) and self.seeds.issuperset(texts):
            wrong = np.array([text in self.lost for text in texts])[:, None]
            return Scores(np.where(wrong, scores.logprobs[:, [1, 2, 0]], scores.logprobs), scores.errors)
        return scores


class Refusing(FakeEngine):
    """Refuses adapters whose name has `part` in it."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part

    async def load_adapter(self, folder: Path) -> AdapterManifest:
        if self.part in folder.name:
            raise AdapterError("probe failed")
        return await super().load_adapter(folder)

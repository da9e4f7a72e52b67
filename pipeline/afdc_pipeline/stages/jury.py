"""Who has a say on which text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afdc_pipeline.context import JobContext
from afdc_pipeline.pool import PoolChunk
from afdc_pipeline.rows import Candidate
from afdc_pipeline.stages.reading import Scorer


class Jury:
    """Which texts a labeller has a say on: those that it is asked about, and where `select.out_of_sample` is on none
    that it was trained on.

    A model gives a text the label that it was trained to give; asked about its own rows it confirms them. For the
    committee a fold's adapter is asked about no others than those that its fold leaves out.
    """

    def __init__(self, ctx: JobContext, scorer: Scorer) -> None:
        biased = ctx.config.select.out_of_sample and not scorer.out_of_sample
        excused = scorer.trained_on if biased else None
        self._ctx, self._scorer = ctx, scorer
        self._refs = {c.index: c.ref for c in ctx.ledger.chunks(excused)} if excused else {}

    def votes(self, chunk: PoolChunk, candidates: Sequence[Candidate]) -> NDArray[np.bool_]:
        """Bool [n]."""
        asked = np.array([self._scorer.asked_about(one) for one in candidates], dtype=np.bool_)
        if chunk.index not in self._refs:
            return asked
        rows = self._ctx.store.get(self._refs[chunk.index])
        return asked & np.array([not self._was_taught(row) for row in rows], dtype=np.bool_)

    def _was_taught(self, row: dict[str, Any]) -> bool:
        return self._ctx.learns_from(row) if self._scorer.view == "adapter" else bool(row["keep"])

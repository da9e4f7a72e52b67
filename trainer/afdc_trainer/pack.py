"""Many examples as one sequence: the shared prefix once, then every text and its answers behind it.

Tokens see the prefix, their own text and their own answer, and nothing of their neighbours, so each has the states it
would have alone; position ids count from the start of the token's own path. One forward pass computes the prefix once a
pack, without padding, and autograd sums every example's gradient into the prefix's keys and values. The sharing follows
prefix grouping (arXiv 2506.05433), the mask tree attention (arXiv 2305.09781).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from afdc_trainer.data import Example

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pack:
    """N tokens in one sequence, M positions whose logits are needed, K predictions made there.

    Attributes:
        ids, positions: int64 [N].
        mask: bool [N, N]; True where the row's token sees the column's.
        keep: int64 [M], increasing positions to read logits at.
        at: int64 [K], index into `keep`.
        targets: int64 [K], ids to predict.
        coefs: float32 [K], what each negative log-likelihood counts in the loss.
        branch: int64 [K], number of the answer, counted through the pack.
    """

    ids: Ints
    positions: Ints
    mask: NDArray[np.bool_]
    keep: Ints
    at: Ints
    targets: Ints
    coefs: NDArray[np.float32]
    branch: Ints


@dataclass
class _Builder:
    """Segments laid one behind the other; each sees a list of earlier segments, whole."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[tuple[slice, tuple[slice, ...]]] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    coefs: list[float] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)

    def segment(self, ids: Sequence[int], sees: tuple[slice, ...]) -> slice:
        start = len(self.ids)
        depth = sum(part.stop - part.start for part in sees)
        self.ids += ids
        self.positions += range(depth, depth + len(ids))
        own = slice(start, start + len(ids))
        self.segments.append((own, sees))
        return own

    def predict(self, sources: Sequence[int], ids: Sequence[int], coef: float, branch: int) -> None:
        self.sources += sources
        self.targets += ids
        self.coefs += [coef] * len(ids)
        self.branches += [branch] * len(ids)

    def mask(self) -> NDArray[np.bool_]:
        mask = np.zeros((len(self.ids), len(self.ids)), dtype=np.bool_)
        for own, sees in self.segments:
            for part in sees:
                mask[own, part] = True
            length = own.stop - own.start
            mask[own, own] = np.tri(length, dtype=np.bool_)
        return mask


def build_pack(prefix: Sequence[int], examples: Sequence[Example]) -> Pack:
    """Lay `examples` behind one copy of `prefix`. Their prompts must not be empty."""
    build = _Builder()
    shared = (build.segment(prefix, ()),)
    branches = 0
    for example in examples:
        prompt = build.segment(example.prompt, shared)
        for branch in example.branches:
            inputs = build.segment(branch.ids[:-1], (*shared, prompt))
            sources = [prompt.stop - 1, *range(inputs.start, inputs.stop)]
            build.predict(sources, branch.ids, branch.coef, branches)
            branches += 1
    keep, at = np.unique(np.asarray(build.sources, dtype=np.int64), return_inverse=True)
    return Pack(
        ids=np.asarray(build.ids, dtype=np.int64),
        positions=np.asarray(build.positions, dtype=np.int64),
        mask=build.mask(),
        keep=keep,
        at=at.astype(np.int64),
        targets=np.asarray(build.targets, dtype=np.int64),
        coefs=np.asarray(build.coefs, dtype=np.float32),
        branch=np.asarray(build.branches, dtype=np.int64),
    )


def split_examples(prefix: int, examples: Sequence[Example], budget: int) -> list[list[Example]]:
    """Cut examples into groups of similar size whose packs hold at most `budget` tokens (or one example).

    `prefix` is the shared prefix's length, which every group pays once. The order is kept.
    """
    room = max(1, budget - prefix)
    total = sum(example.tokens for example in examples)
    target = -(-total // -(-total // room))
    groups: list[list[Example]] = [[]]
    used = 0
    for example in examples:
        full = used + example.tokens > room or used >= target
        if groups[-1] and full:
            groups.append([])
            used = 0
        groups[-1].append(example)
        used += example.tokens
    return groups

"""Many examples as one sequence: the shared prefix once, then every text and its answers behind it.

Tokens see the prefix, their own text and their own answer, and nothing of their neighbours, so each has the states it
would have alone; position ids count from the start of the token's own path. One forward pass computes the prefix once a
pack, without padding, and autograd sums every example's gradient into the prefix's keys and values. The sharing follows
prefix grouping (arXiv 2506.05433), the mask tree attention (arXiv 2305.09781).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afdc_trainer.data import Example

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pack:
    """N tokens in one sequence (P of the prefix, then B examples), M positions with logits, K predictions made there.

    Attributes:
        ids, positions: int64 [N].
        prefix: P, the tokens that every token behind them sees.
        rows: int64 [B, L], the tokens of each example, padded with the index of some other token.
        own: bool [B, L, L]; True where a token of an example sees another of the same example.
        place: int64 [N - P], where each token behind the prefix stands in `rows`, flattened.
        keep: int64 [M], increasing positions to read logits at.
        at: int64 [K], index into `keep`.
        targets: int64 [K], ids to predict.
        coefs: float32 [K], what each negative log-likelihood counts in the loss.
        branch: int64 [K], number of the answer, counted through the pack.
        ends: int64 [B], the last token of each example's prompt: behind it the answer begins.
    """

    ids: Ints
    positions: Ints
    prefix: int
    rows: Ints
    own: NDArray[np.bool_]
    place: Ints
    keep: Ints
    at: Ints
    targets: Ints
    coefs: NDArray[np.float32]
    branch: Ints
    ends: Ints


def build_pack(prefix: Sequence[int], examples: Sequence[Example]) -> Pack:
    """Lay `examples` behind one copy of `prefix`. Their prompts must not be empty."""
    depth = len(prefix)
    ids, positions = list(prefix), list(range(depth))
    sources: list[int] = []
    ends: list[int] = []
    for example in examples:
        start, length = len(ids), len(example.prompt)
        ends.append(start + length - 1)
        ids += example.prompt
        positions += range(depth, depth + length)
        for branch in example.branches:
            sources += [start + length - 1, *range(len(ids), len(ids) + len(branch.ids) - 1)]
            ids += branch.ids[:-1]
            positions += range(depth + length, depth + length + len(branch.ids) - 1)
    keep, at = np.unique(np.asarray(sources, dtype=np.int64), return_inverse=True)
    rows, own, place = _lay_out(depth, examples)
    branches = [branch for example in examples for branch in example.branches]
    sizes = [len(branch.ids) for branch in branches]
    return Pack(
        ids=np.asarray(ids, dtype=np.int64),
        positions=np.asarray(positions, dtype=np.int64),
        prefix=depth,
        rows=rows,
        own=own,
        place=place,
        keep=keep,
        at=at.astype(np.int64),
        targets=np.asarray([token for branch in branches for token in branch.ids], dtype=np.int64),
        coefs=np.repeat(np.asarray([branch.coef for branch in branches], dtype=np.float32), sizes),
        branch=np.repeat(np.arange(len(branches)), sizes),
        ends=np.asarray(ends, dtype=np.int64),
    )


def _lay_out(depth: int, examples: Sequence[Example]) -> tuple[Ints, NDArray[np.bool_], Ints]:
    """`rows`, `own` and `place` of a pack."""
    width = max(example.tokens for example in examples)
    rows = np.full((len(examples), width), depth, dtype=np.int64)
    own = np.zeros((len(examples), width, width), dtype=np.bool_)
    place: list[int] = []
    start = depth
    for row, example in enumerate(examples):
        rows[row, : example.tokens] = np.arange(start, start + example.tokens)
        own[row, : example.tokens, : example.tokens] = _visible(example)
        place += range(row * width, row * width + example.tokens)
        start += example.tokens
    return rows, own, np.asarray(place, dtype=np.int64)


def _visible(example: Example) -> NDArray[np.bool_]:
    """Bool [n, n] over an example's tokens: all see the prompt before them, answers see themselves."""
    mask = np.tri(example.tokens, dtype=np.bool_)
    mask[:, len(example.prompt) :] = False
    start = len(example.prompt)
    for branch in example.branches:
        part = slice(start, start + len(branch.ids) - 1)
        mask[part, part] = np.tri(part.stop - part.start, dtype=np.bool_)
        start = part.stop
    return mask


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

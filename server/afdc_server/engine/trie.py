"""The label trie: which next-token reads give log P(label's token sequence | prompt) for every label at once.

Labels that begin alike share the reads of their common beginning. A read asks for the log-probs of some child tokens
after `prompt + path`; a label's score is the sum over the reads along its path.

No label is more likely than its beginning, so a beginning with next to no probability need not be read to its end: with
many labels most reads are of that kind. `worth` picks those that are not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

MAX_IDS_PER_READ = 128  # vLLM refuses a longer logprob_token_ids (MAX_LOGPROB_TOKEN_IDS)


@dataclass(frozen=True, slots=True)
class NodeRead:
    """One next-token read: the log-probs of `ids` after the prompt and `path`."""

    path: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class LabelTrie:
    """Reads of a label set, and how they add up.

    Attributes:
        reads: the reads; a node with many children is split over several. Shallow nodes come first.
        edges: int64 [n_labels, longest path], positions in the concatenated read answers; -1 fills short paths.
    """

    reads: tuple[NodeRead, ...]
    edges: NDArray[np.int64]
    crowds: NDArray[np.int64]
    """int64, as `edges`: how many labels begin with the path up to that edge, the label itself among them."""

    @classmethod
    def build(cls, paths: Sequence[tuple[int, ...]], max_ids: int = MAX_IDS_PER_READ) -> LabelTrie:
        """Build the trie of the label paths (PromptCodec.scored_ids).

        Raises:
            ValueError: a path is empty.
        """
        if not paths or not all(paths):
            raise ValueError("every label needs at least one token")
        reads = _plan_reads(paths, max_ids)
        return cls(reads, _plan_edges(paths, reads), _count_crowds(paths))

    @cached_property
    def levels(self) -> list[list[int]]:
        """Numbers of the reads by the length of their path, the shortest first."""
        depths = [len(read.path) for read in self.reads]
        return [[i for i, depth in enumerate(depths) if depth == level] for level in sorted(set(depths))]

    def worth(self, answers: Mapping[int, Sequence[float]], reads: Sequence[int], floor: float) -> list[int]:
        """Those of `reads` whose path has at least `floor` of the probability on all the labels' first tokens.

        Args:
            answers: of all shallower reads that were worth it, by their number.
            floor: 0..1; with 0 every read is worth it.
        """
        known = {
            (*self.reads[number].path, token): value
            for number, values in answers.items()
            for token, value in zip(self.reads[number].ids, values, strict=True)
        }
        first = np.logaddexp.reduce([value for path, value in known.items() if len(path) == 1] or [0.0])
        lowest = first + (np.log(floor) if floor > 0 else -np.inf)
        return [number for number in reads if _path_logprob(self.reads[number].path, known) >= lowest]

    def assemble(self, answers: Sequence[Sequence[float] | None]) -> NDArray[np.float64]:
        """Sum the reads' log-probs along each label's path.

        Args:
            answers: one sequence a read, in the order of `reads`, with one log-prob for each of its ids; None where it
                was not worth reading. The labels behind it share the probability of what they begin with equally.

        Returns:
            float64 [n_labels], natural log.
        """
        pairs = zip(self.reads, answers, strict=True)
        parts = [np.full(len(read.ids), np.nan) if answer is None else np.asarray(answer) for read, answer in pairs]
        padded = np.append(np.concatenate(parts).astype(np.float64), 0.0)  # index -1 reads this zero
        steps = padded[self.edges]
        unread = np.isnan(steps)
        shares = np.where(unread & (np.cumsum(unread, axis=1) == 1), -np.log(self.crowds), 0.0)
        total: NDArray[np.float64] = np.where(unread, shares, steps).sum(axis=1)
        return total


def _path_logprob(path: tuple[int, ...], known: Mapping[tuple[int, ...], float]) -> float:
    """Log-probability of a path; minus infinity where its beginning was not read."""
    return sum(known.get(path[: end + 1], -np.inf) for end in range(len(path)))


def _count_crowds(paths: Sequence[tuple[int, ...]]) -> NDArray[np.int64]:
    beginnings = Counter(path[:depth] for path in paths for depth in range(len(path)))
    crowds = np.ones((len(paths), max(map(len, paths))), dtype=np.int64)
    for label, path in enumerate(paths):
        crowds[label, : len(path)] = [beginnings[path[:depth]] for depth in range(len(path))]
    return crowds


def _plan_reads(paths: Sequence[tuple[int, ...]], max_ids: int) -> tuple[NodeRead, ...]:
    children: dict[tuple[int, ...], dict[int, None]] = {}
    for path in paths:
        for depth, token in enumerate(path):
            children.setdefault(path[:depth], {})[token] = None
    return tuple(
        NodeRead(path, tuple(ids)[start : start + max_ids])
        for path, ids in sorted(children.items(), key=lambda item: len(item[0]))
        for start in range(0, len(ids), max_ids)
    )


def _plan_edges(paths: Sequence[tuple[int, ...]], reads: Sequence[NodeRead]) -> NDArray[np.int64]:
    order = [(read.path, token) for read in reads for token in read.ids]
    position = {edge: index for index, edge in enumerate(order)}
    edges = np.full((len(paths), max(map(len, paths))), -1, dtype=np.int64)
    for label, path in enumerate(paths):
        for depth, token in enumerate(path):
            edges[label, depth] = position[path[:depth], token]
    return edges

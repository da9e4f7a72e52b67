"""The label trie: which next-token reads give log P(label's token sequence | prompt) for every label at once.

Labels that begin alike share the reads of their common beginning. A read asks for the log-probs of some child tokens
after `prompt + path`; a label's score is the sum over the reads along its path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

    @classmethod
    def build(cls, paths: Sequence[tuple[int, ...]], max_ids: int = MAX_IDS_PER_READ) -> LabelTrie:
        """Build the trie of the label paths (PromptCodec.scored_ids).

        Raises:
            ValueError: a path is empty.
        """
        if not paths or not all(paths):
            raise ValueError("every label needs at least one token")
        reads = _plan_reads(paths, max_ids)
        return cls(reads, _plan_edges(paths, reads))

    def assemble(self, answers: Sequence[Sequence[float]]) -> NDArray[np.float64]:
        """Sum the reads' log-probs along each label's path.

        Args:
            answers: one sequence a read, in the order of `reads`, with one log-prob for each of its ids.

        Returns:
            float64 [n_labels], natural log.
        """
        flat = np.fromiter((value for answer in answers for value in answer), dtype=np.float64)
        padded = np.append(flat, 0.0)  # index -1 reads this zero
        total: NDArray[np.float64] = padded[self.edges].sum(axis=1)
        return total


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

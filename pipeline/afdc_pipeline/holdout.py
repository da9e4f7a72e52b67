"""Which seeds stay out of training: a held-out share to gate adapters, and folds for out-of-fold scores.

A seed's place depends on its id, its label's other seeds and the run's seed, not on the order of the file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from afdc.files import sha256_bytes
from afdc.task import text_id
from afdc_pipeline.rows import Candidate, Seed


@dataclass(frozen=True)
class Fold:
    """Train on `train`, score `held`. It is fold `number` of `of`; one of one holds nothing out."""

    train: tuple[Seed, ...]
    held: tuple[Seed, ...]
    number: int = 0
    of: int = 1

    @cached_property
    def held_ids(self) -> frozenset[str]:
        """Ids of the held seeds."""
        return frozenset(seed.id for seed in self.held)

    def leaves_out(self, candidate: Candidate) -> bool:
        """Whether a text is not trained on either: it was written from a held seed, or is this fold's share of the
        real ones, which are dealt out by their ids.
        """
        if candidate.parent:
            return candidate.parent in self.held_ids
        return self.of > 1 and int(sha256_bytes(candidate.id.encode())[:8], 16) % self.of == self.number


def split(seeds: Sequence[Seed], share: float, seed: int, *, by_label: bool = True) -> tuple[Seed, ...]:
    """The seeds in their order, `holdout` set on about `share` (0..1) of each label's, or of all together.

    Rounded to the nearest number of rows a label, at least one where the label has two seeds or more, and never a
    label's last training seed. A share of 0 holds nothing out.
    """
    groups = _by_label(seeds, seed) if by_label else [_shuffled(seeds, seed)]
    held = {row.id for group in groups for row in group[: _held_count(len(group), share)]}
    return tuple(replace(row, holdout=row.id in held) for row in seeds)


def _held_count(n: int, share: float) -> int:
    if share <= 0:
        return 0
    return min(max(round(n * share), 1), n - 1)


def folds(seeds: Sequence[Seed], k: int, seed: int) -> tuple[Fold, ...]:
    """k stratified folds; each seed is held out once, except a label's only seed, which every fold trains on.

    Labels start at different folds, so that folds are of similar size however few seeds a label has. A fold may hold
    nothing when there are fewer seeds than folds.

    Raises:
        ValueError: k below 2.
    """
    if k < 2:
        raise ValueError(f"k-fold scores need at least 2 folds, not {k}")
    place: dict[str, int] = {}
    for group in _by_label(seeds, seed):
        if len(group) > 1:
            start = len(place)
            place.update({row.id: (start + i) % k for i, row in enumerate(group)})
    return tuple(
        Fold(
            train=tuple(row for row in seeds if place.get(row.id) != fold),
            held=tuple(row for row in seeds if place.get(row.id) == fold),
            number=fold,
            of=k,
        )
        for fold in range(k)
    )


def cross_folds(seeds: Sequence[Seed], k: int, seed: int) -> list[Fold]:
    """The folds that hold a seed out; none for k of 0 or 1."""
    return [fold for fold in folds(seeds, k, seed) if fold.held] if k > 1 else []


def _by_label(seeds: Sequence[Seed], seed: int) -> list[list[Seed]]:
    """Seeds of each label in an order drawn by `seed`, labels in the order of their names."""
    groups: dict[str, list[Seed]] = defaultdict(list)
    for row in seeds:
        groups[row.label].append(row)
    return [_shuffled(groups[label], seed) for label in sorted(groups)]


def _shuffled(seeds: Sequence[Seed], seed: int) -> list[Seed]:
    return sorted(seeds, key=lambda row: text_id("", seed, row.id))

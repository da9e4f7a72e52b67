"""Stratified hold-out and folds of the seeds."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afdc_pipeline.holdout import Fold, folds, split
from afdc_pipeline.rows import Candidate, Seed


def make(counts: list[int]) -> list[Seed]:
    return [Seed(f"s{label}-{i}", f"text {i}", f"label {label}") for label, n in enumerate(counts) for i in range(n)]


counts = st.lists(st.integers(1, 12), min_size=1, max_size=6)


@given(counts, st.floats(0, 0.49), st.integers(0, 99))
def test_the_split_is_stratified_and_leaves_every_label_a_seed(sizes: list[int], share: float, seed: int) -> None:
    seeds = make(sizes)
    marked = split(seeds, share, seed)
    assert [row.id for row in marked] == [row.id for row in seeds]
    held = Counter(row.label for row in marked if row.holdout)
    for label, n in enumerate(sizes):
        assert held[f"label {label}"] <= n - 1
        assert abs(held[f"label {label}"] - n * share) <= 1
        assert share == 0 or n == 1 or held[f"label {label}"] >= 1


def test_the_split_depends_on_the_seed_and_not_on_the_order() -> None:
    seeds = make([10, 10])
    held = {row.id for row in split(seeds, 0.3, 1) if row.holdout}
    assert held == {row.id for row in split(seeds[::-1], 0.3, 1) if row.holdout}
    assert held != {row.id for row in split(seeds, 0.3, 2) if row.holdout}
    assert not any(row.holdout for row in split(seeds, 0.0, 1))


@given(counts, st.integers(2, 6), st.integers(0, 99))
def test_folds_hold_each_seed_once_and_never_lose_a_label(sizes: list[int], k: int, seed: int) -> None:
    seeds = make(sizes)
    parts = folds(seeds, k, seed)
    assert len(parts) == k
    held = Counter(row.id for fold in parts for row in fold.held)
    single = {row.id for row in seeds if sizes[int(row.label.split()[1])] == 1}
    assert held == Counter({row.id for row in seeds} - single)
    for fold in parts:
        assert sorted([*fold.train, *fold.held], key=lambda row: row.id) == sorted(seeds, key=lambda row: row.id)
        assert {row.label for row in fold.train} == {row.label for row in seeds}
        for label in {row.label for row in seeds}:
            n = sum(row.label == label for row in seeds)
            assert abs(sum(row.label == label for row in fold.held) - n / k) <= 1
    assert max(len(f.held) for f in parts) - min(len(f.held) for f in parts) <= 1


def test_one_fold_is_none() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        folds(make([3]), 1, 0)


@given(st.integers(2, 4), st.integers(0, 20))
def test_every_text_is_left_out_by_one_fold(k: int, seed: int) -> None:
    seeds = make([8, 8])
    parts = folds(seeds, k, seed)
    written = [Candidate(f"c{row.id}", "text", "generated", parent=row.id) for row in seeds]
    real = [Candidate(f"u{n}", f"text {n}", "unlabeled") for n in range(60)]
    for candidate in [*written, *real]:
        assert sum(fold.leaves_out(candidate) for fold in parts) == 1
    assert all(any(fold.leaves_out(one) for one in real) for fold in parts)
    assert not any(Fold(tuple(seeds), ()).leaves_out(one) for one in [*written, *real])

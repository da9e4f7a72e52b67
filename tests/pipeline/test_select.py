"""Selection through its public function: the paper's rule, caps, strategies, order independence, cost."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afdc.config import SelectConfig
from afdc.presets import build_config
from afdc_pipeline import scoring
from afdc_pipeline.select import REASONS, Columns, Reason, Trust, hashed_features, select, tie_break
from afdc_pipeline.select.balance import balance_cap, rank_in_group
from afdc_pipeline.select.diversity import farthest_first

PLAIN = {"agreement": False, "balance": False, "align": False}
STRATEGIES = ["confidence", "least_confidence", "margin", "entropy", "committee"]


def draw_columns(seed: int, n: int, n_labels: int = 4, n_seeds: int = 8, rejected: float = 0.1) -> Columns:
    rng = np.random.default_rng(seed)
    members = [rng.dirichlet(np.linspace(0.3, 2.0, n_labels), size=n) for _ in range(2)]
    members[0][rng.random(n) < rejected] = np.nan
    return Columns.from_probs(
        scoring.ensemble(members),
        ids=[f"c{seed}-{i}" for i in range(n)],
        intended=rng.integers(-1, n_labels, n),
        parent=rng.integers(-1, n_seeds, n),
        disagreement=scoring.disagreement(members),
    )


def take(columns: Columns, rows: np.ndarray) -> Columns:
    return Columns(*(getattr(columns, field.name)[rows] for field in fields(columns)))


configs = st.builds(
    SelectConfig,
    strategy=st.sampled_from(STRATEGIES),
    threshold=st.sampled_from([0.0, 0.4, 0.7]),
    agreement=st.booleans(),
    balance=st.booleans(),
    per_label=st.none() | st.integers(1, 20),
    per_seed=st.none() | st.integers(1, 20),
    target_rows=st.none() | st.integers(1, 80),
    weighted=st.booleans(),
)


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.5, 0.9]))
def test_the_paper_preset_is_confidence_above_tau_and_nothing_else(seed: int, threshold: float) -> None:
    config = build_config("paper", {"select": {"threshold": threshold}}).select
    columns = draw_columns(seed, 200)
    chosen = select(columns, config, 4)
    np.testing.assert_array_equal(chosen.keep, columns.confidence > np.float32(threshold))
    assert (chosen.weight[chosen.keep] == 1).all()
    assert set(chosen.counts()) <= {"kept", "below_threshold", "engine_rejected"}


def test_the_threshold_is_strict() -> None:
    probs = np.array([[0.75, 0.25], [0.7500001, 0.2499999], [0.5, 0.5]])
    columns = Columns.from_probs(probs, ["a", "b", "c"], [0, 0, 0], [0, 0, 0])
    assert select(columns, SelectConfig(threshold=0.75, **PLAIN), 2).keep.tolist() == [False, True, False]


@given(st.integers(0, 1000), st.integers(0, 150), configs)
def test_every_cap_and_filter_holds(seed: int, n: int, config: SelectConfig) -> None:
    columns = draw_columns(seed, n)
    chosen = select(columns, config, 4)
    kept = take(columns, np.flatnonzero(chosen.keep))
    per_label = np.bincount(kept.label, minlength=4)
    assert not kept.rejected.any()
    assert (kept.confidence > config.threshold).all()
    if config.agreement:
        assert ((kept.intended < 0) | (kept.intended == kept.label)).all()
    if config.per_seed:
        assert np.bincount(kept.parent[kept.parent >= 0], minlength=1).max() <= config.per_seed
    if config.per_label:
        assert per_label.max() <= config.per_label
    if config.target_rows:
        assert len(kept) <= config.target_rows
    if config.balance and config.per_seed is None:
        free = select(columns, config.model_copy(update={"balance": False, "per_label": None, "target_rows": None}), 4)
        assert per_label.max() <= balance_cap(np.bincount(columns.label[free.keep], minlength=4))
    assert (chosen.weight > 0).tolist() == chosen.keep.tolist()
    assert sum(chosen.counts().values()) == n
    assert set(chosen.counts()) <= set(REASONS.values())


@given(st.integers(0, 1000), configs)
def test_the_order_of_the_candidates_does_not_matter(seed: int, config: SelectConfig) -> None:
    columns = draw_columns(seed, 120)
    order = np.random.default_rng(seed).permutation(120)
    shuffled = select(take(columns, order), config, 4)
    np.testing.assert_array_equal(shuffled.reason, select(columns, config, 4).reason[order])


@pytest.mark.parametrize(
    ("strategy", "column", "sign"),
    [
        ("confidence", "confidence", -1),
        ("least_confidence", "confidence", 1),
        ("margin", "margin", 1),
        ("entropy", "entropy", -1),
        ("committee", "disagreement", -1),
    ],
)
def test_each_strategy_takes_its_extreme(strategy: str, column: str, sign: int) -> None:
    columns = draw_columns(5, 300, rejected=0.0)
    chosen = select(columns, SelectConfig(strategy=strategy, target_rows=40, **PLAIN), 4)
    values = sign * getattr(columns, column)
    assert chosen.keep.sum() == 40
    assert values[chosen.keep].max() <= values[~chosen.keep].min()


def test_reasons_name_the_first_step_that_dropped_a_row() -> None:
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.2, 0.8], [0.45, 0.55], [np.nan, np.nan], [0.65, 0.35]])
    columns = Columns.from_probs(probs, list("abcdefg"), [0, 0, 0, 0, 0, 0, -1], [0, 0, 1, 1, 1, 1, -1])
    config = SelectConfig(threshold=0.6, agreement=True, balance=False, per_seed=1, per_label=1)
    names = [REASONS[code] for code in select(columns, config, 2).reason]
    assert names == [
        "kept",
        "seed_cap",
        "label_cap",
        "disagrees_with_intended",
        "below_threshold",
        "engine_rejected",
        "label_cap",
    ]


def test_a_tiny_label_does_not_empty_the_selection() -> None:
    assert balance_cap(np.array([2, 500, 500])) == 80
    assert balance_cap(np.array([100, 100, 100])) == 100
    assert balance_cap(np.array([0, 40, 40])) == 40
    assert balance_cap(np.array([0, 0])) == 0


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=80))
def test_the_balance_cap_lies_between_smallest_and_mean(counts: list[int]) -> None:
    present = [count for count in counts if count]
    cap = balance_cap(np.array(counts))
    if present:
        assert min(present) <= cap <= np.ceil(np.mean(present))


def test_a_target_is_shared_between_labels_when_balanced() -> None:
    columns = draw_columns(6, 2000, rejected=0.0)
    chosen = select(columns, SelectConfig(agreement=False, balance=True, target_rows=40), 4)
    assert np.bincount(columns.label[chosen.keep], minlength=4).tolist() == [10, 10, 10, 10]
    assert REASONS[int(Reason.OVER_TARGET)] in chosen.counts()


def test_diversity_prefers_unlike_texts_and_needs_features() -> None:
    texts = [f"where is the river {i % 3}?" for i in range(30)] + ["谁写了红楼梦?", "How many moons has Mars?"]
    probs = np.tile([0.9, 0.1], (32, 1))
    columns = Columns.from_probs(probs, texts, [0] * 32, [0] * 32)
    config = SelectConfig(strategy="diversity", per_label=5, balance=False)
    features = hashed_features(texts)
    chosen = select(columns, config, 2, features)
    assert chosen.keep[30:].all()
    assert len({texts[i] for i in np.flatnonzero(chosen.keep)}) == 5
    assert chosen.counts() == {"kept": 5, "not_diverse": 27}
    np.testing.assert_array_equal(select(columns, config, 2, lambda rows: features[rows]).keep, chosen.keep)
    with pytest.raises(ValueError, match="features"):
        select(columns, config, 2)


def test_farthest_first_matches_the_definition() -> None:
    points = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    order = farthest_first(points)
    assert sorted(order) == list(range(40))
    far = 1 - points.astype(np.float64) @ points.T.astype(np.float64)
    for step in range(1, 40):
        gaps = far[order[step:]][:, order[:step]].min(axis=1)
        assert gaps[0] == pytest.approx(gaps.max(), abs=1e-5)


@given(st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_hashed_features_are_unit_vectors_that_ignore_case(texts: list[str]) -> None:
    features = hashed_features(texts)
    np.testing.assert_array_equal(features, hashed_features(texts))
    norms = np.linalg.norm(features, axis=1)
    assert all(n == pytest.approx(1, abs=1e-5) or n == 0 for n in norms)
    np.testing.assert_array_equal(hashed_features(["Straße"]), hashed_features(["STRASSE"]))


@given(st.lists(st.integers(-1, 4), max_size=50))
def test_rank_in_group_counts_earlier_members(groups: list[int]) -> None:
    ranks = rank_in_group(np.array(groups, dtype=np.int32))
    assert ranks.tolist() == [groups[:i].count(group) for i, group in enumerate(groups)]


def test_columns_join_and_refuse_unequal_lengths() -> None:
    parts = [draw_columns(7, 10), draw_columns(8, 5)]
    joined = Columns.concat(parts)
    assert len(joined) == 15
    np.testing.assert_array_equal(joined.tie[10:], parts[1].tie)
    with pytest.raises(ValueError, match="differ in length"):
        Columns(*(getattr(joined, field.name)[: 3 if field.name == "tie" else 15] for field in fields(joined)))
    assert tie_break(["a"]).tolist() == tie_break(["b", "a"])[1:].tolist()


def large_columns(n: int, n_labels: int) -> Columns:
    rng = np.random.default_rng(9)
    values = [rng.random(n, dtype=np.float32) for _ in range(4)]
    label = rng.integers(0, n_labels, n, dtype=np.int32)
    parent = rng.integers(0, 500, n, dtype=np.int32)
    tie = rng.integers(0, 2**63, n).astype(np.uint64)
    flags = {"rejected": np.zeros(n, dtype=bool), "divided": np.zeros(n, dtype=bool)}
    return Columns(label, label.copy(), *values, parent=parent, tie=tie, **flags)


def test_a_large_pool_costs_linear_memory_and_little_time() -> None:
    n = 200_000
    columns = large_columns(n, 50)
    config = SelectConfig(per_seed=300, per_label=3000, target_rows=100_000)
    tracemalloc.start()
    begin = time.perf_counter()
    chosen = select(columns, config, 50)
    seconds, peak = time.perf_counter() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert chosen.keep.sum() == 100_000
    assert peak < 100 * n, f"{peak / n:.0f} bytes a row"
    assert seconds < 5, f"{seconds:.1f} s"


@given(st.integers(0, 1000), st.floats(0, 0.6), st.sampled_from([0.0, 0.6, 0.8, 0.95]))
def test_the_surest_rows_are_trusted_up_to_the_wanted_precision(seed: int, error: float, precision: float) -> None:
    columns = draw_columns(seed, 120)
    free = SelectConfig(**PLAIN, unanimous=False)
    every = np.flatnonzero(select(columns, free, 4).keep)
    chosen = select(columns, free, 4, trust=Trust(error, precision))
    kept, left = np.flatnonzero(chosen.keep), np.flatnonzero(chosen.reason == Reason.NOT_TRUSTED)
    assert sorted([*kept, *left]) == every.tolist()
    assert len(kept) <= len(every) - int(error * len(every))
    assert len(kept) >= min(len(every) - int(error * len(every)), len(every) / 2)
    if len(kept) > (len(every) + 1) // 2:
        assert columns.confidence[kept].mean(dtype=float) >= precision - 1e-6
    if len(kept) and len(left):
        assert columns.confidence[kept].min() >= columns.confidence[left].max()

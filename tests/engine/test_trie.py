from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afdc_server.engine.trie import MAX_IDS_PER_READ, LabelTrie

tokens = st.integers(min_value=0, max_value=5)
label_paths = st.lists(st.lists(tokens, min_size=1, max_size=4).map(tuple), min_size=1, max_size=30, unique=True)


def edge_logprob(path: tuple[int, ...], token: int) -> float:
    """A made-up model: some log-prob that depends on the whole path."""
    return -((hash((path, token)) % 1000) / 100 + 0.01)


def answer(trie: LabelTrie) -> list[list[float]]:
    return [[edge_logprob(read.path, token) for token in read.ids] for read in trie.reads]


@given(label_paths, st.integers(min_value=1, max_value=4))
def test_scores_equal_the_sum_along_each_path(paths: list[tuple[int, ...]], max_ids: int) -> None:
    trie = LabelTrie.build(paths, max_ids)
    expected = [math.fsum(edge_logprob(path[:i], token) for i, token in enumerate(path)) for path in paths]
    np.testing.assert_allclose(trie.assemble(answer(trie)), expected, rtol=0, atol=1e-12)


@given(label_paths, st.integers(min_value=1, max_value=4))
def test_every_edge_is_read_once_and_no_read_is_too_wide(paths: list[tuple[int, ...]], max_ids: int) -> None:
    trie = LabelTrie.build(paths, max_ids)
    edges = [(read.path, token) for read in trie.reads for token in read.ids]
    assert len(edges) == len(set(edges))
    assert set(edges) == {(path[:i], token) for path in paths for i, token in enumerate(path)}
    assert all(1 <= len(read.ids) <= max_ids for read in trie.reads)


def test_a_node_with_many_children_is_split() -> None:
    trie = LabelTrie.build([(i,) for i in range(300)])
    assert [len(read.ids) for read in trie.reads] == [MAX_IDS_PER_READ, MAX_IDS_PER_READ, 300 - 2 * MAX_IDS_PER_READ]


def test_labels_of_one_token_each_need_one_read() -> None:
    assert len(LabelTrie.build([(1,), (2,), (3,)]).reads) == 1


def test_a_label_that_begins_another_keeps_its_own_score() -> None:
    trie = LabelTrie.build([(7, 0), (7, 8, 0)])
    assert trie.assemble([[-1.0], [-2.0, -3.0], [-4.0]]).tolist() == [-3.0, -8.0]


@pytest.mark.parametrize("paths", [[], [()], [(1,), ()]])
def test_labels_without_tokens_are_refused(paths: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        LabelTrie.build(paths)


def read_worthy(trie: LabelTrie, floor: float) -> dict[int, list[float]]:
    """Answers of a model whose next token is one of six, level by level, without what is not worth reading."""
    answers: dict[int, list[float]] = {}
    for level in trie.levels:
        for number in trie.worth(answers, level, floor):
            read = trie.reads[number]
            answers[number] = [next_logprob(read.path, token) for token in read.ids]
    return answers


def next_logprob(path: tuple[int, ...], token: int) -> float:
    weights = np.random.default_rng([len(path), *path]).dirichlet([0.2] * 6)
    return float(np.log(weights[token] + 1e-12))


@given(label_paths, st.sampled_from([0.0, 1e-3, 0.1]), st.integers(min_value=1, max_value=4))
def test_a_floor_leaves_out_only_what_is_less_likely(paths: list[tuple[int, ...]], floor: float, max_ids: int) -> None:
    trie = LabelTrie.build(paths, max_ids)
    answers = read_worthy(trie, floor)
    scores = trie.assemble([answers.get(number) for number in range(len(trie.reads))])
    exact = [sum(next_logprob(path[:i], token) for i, token in enumerate(path)) for path in paths]
    mass = np.exp([next_logprob((), token) for token in {path[0] for path in paths}]).sum()
    for score, truth in zip(scores, exact, strict=True):
        if not math.isclose(score, truth, abs_tol=1e-9):
            assert math.exp(truth) <= floor * mass
            assert math.exp(score) <= floor * mass


def test_labels_left_out_share_what_their_beginning_has() -> None:
    trie = LabelTrie.build([(1, 3), (1, 4), (2,)])
    rare = math.log(1e-6)
    answers = {0: [rare, math.log(0.9)]}
    assert trie.worth(answers, [1], 1e-4) == []
    assert trie.assemble([answers[0], None]) == pytest.approx([rare - math.log(2), rare - math.log(2), math.log(0.9)])

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

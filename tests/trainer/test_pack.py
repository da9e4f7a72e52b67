"""Packs: who sees whom, where a token stands, and where answers are predicted."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from afdc_trainer.data import Branch, Example
from afdc_trainer.pack import build_pack, split_examples

TWO = [
    Example((10, 11), (Branch((20, 21, 0), 0.5),)),
    Example((12,), (Branch((22, 0), 0.25), Branch((23,), 1.0))),
]


def test_layout_holds_prefix_once_and_no_padding() -> None:
    pack = build_pack([1, 2], TWO)
    assert pack.ids.tolist() == [1, 2, 10, 11, 20, 21, 12, 22]
    assert pack.positions.tolist() == [0, 1, 2, 3, 4, 5, 2, 3]
    assert pack.keep.tolist() == [3, 4, 5, 6, 7]
    assert pack.keep[pack.at].tolist() == [3, 4, 5, 6, 7, 6]
    assert pack.targets.tolist() == [20, 21, 0, 22, 0, 23]
    assert pack.branch.tolist() == [0, 0, 0, 1, 1, 2]
    assert pack.coefs.tolist() == [0.5, 0.5, 0.5, 0.25, 0.25, 1.0]


def test_a_token_sees_its_own_path_only() -> None:
    mask = build_pack([1, 2], TWO).mask
    assert [np.flatnonzero(row).tolist() for row in mask] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4, 5],
        [0, 1, 6],
        [0, 1, 6, 7],
    ]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    prefix=st.integers(0, 30),
    budget=st.integers(1, 120),
)
def test_groups_keep_order_and_budget(lengths: list[int], prefix: int, budget: int) -> None:
    examples = [Example(tuple(range(n)), (Branch((n,), 1.0),)) for n in lengths]
    groups = split_examples(prefix, examples, budget)
    assert [e for group in groups for e in group] == examples
    for group in groups:
        assert len(group) == 1 or prefix + sum(e.tokens for e in group) <= budget

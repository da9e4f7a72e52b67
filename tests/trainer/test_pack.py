"""Packs: who sees whom, where a token stands, and where answers are predicted."""

from __future__ import annotations

import pytest
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
    pack = build_pack([1, 2], TWO)
    assert pack.prefix == 2
    assert pack.rows.tolist() == [[2, 3, 4, 5], [6, 7, 2, 2]]
    assert pack.place.tolist() == [0, 1, 2, 3, 4, 5]
    assert pack.own[0].astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert pack.own[1].astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_answers_of_one_text_do_not_see_each_other() -> None:
    pack = build_pack([1], [Example((5,), (Branch((6, 0), 1.0), Branch((7, 8, 0), 1.0)))])
    assert pack.ids.tolist() == [1, 5, 6, 7, 8]
    assert pack.positions.tolist() == [0, 1, 2, 2, 3]
    assert pack.own[0].astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]


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


@pytest.mark.trainer
def test_tree_attention_equals_dense_attention_and_its_fused_form() -> None:
    import torch

    from afdc_trainer import attention

    pack = build_pack([1, 2, 3], TWO)
    tree = attention.Tree.of(pack, torch.device("cpu"), torch.float32)
    n = len(pack.ids)
    dense = torch.zeros(n, n, dtype=torch.bool)
    dense[:3, :3], dense[3:, :3] = torch.ones(3, 3).tril().bool(), True
    for row, example in enumerate(TWO):
        index = torch.from_numpy(pack.rows[row, : example.tokens])
        dense[index[:, None], index] = torch.from_numpy(pack.own[row, : example.tokens, : example.tokens])
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, n, 8, generator=generator) for heads in (4, 2, 2))
    out, _ = attention.tree_attention(None, q, k, v, None, tree=tree)
    wide = [part.repeat_interleave(2, dim=1) for part in (k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(q, *wide, attn_mask=dense).transpose(1, 2)
    assert torch.allclose(out, expected, atol=1e-6)
    rows = [p[0].transpose(0, 1).index_select(0, tree.rows.flatten()).view(2, -1, *p.shape[1::2]) for p in (q, k, v)]
    shared = tuple(part[0].transpose(0, 1)[:3] for part in (k, v))
    fused = attention._fused(*rows, shared, tree.bias, 8**-0.5, None)
    split = attention._split(*rows, shared, tree.bias, 8**-0.5, None)
    assert torch.allclose(fused, split, atol=1e-6)

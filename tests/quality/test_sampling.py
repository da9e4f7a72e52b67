"""Nucleus sampling without a sort."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from benchmarks.quality.sampling import TRIES, sample  # noqa: E402  # after the check for torch

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01]).log()


def draw(top_p: float, temperature: float, n: int = 20000, tries: int = TRIES) -> torch.Tensor:
    uniforms = torch.rand((n, tries), generator=torch.Generator().manual_seed(0))
    rows = LOGITS.expand(n, -1)
    tokens, logprobs = sample(rows, torch.full((n,), temperature), torch.full((n,), top_p), uniforms)
    assert torch.allclose(logprobs, LOGITS[tokens], atol=1e-5)  # without temperature and cut
    return torch.bincount(tokens, minlength=5) / n


@pytest.mark.parametrize("tries", [1, TRIES])
def test_tokens_come_from_the_renormalised_nucleus(tries: int) -> None:
    assert torch.allclose(draw(0.9, 1.0, tries=tries), torch.tensor([0.5, 0.3, 0.15, 0, 0]) / 0.95, atol=0.015)


def test_all_of_the_mass_is_the_distribution_itself() -> None:
    assert torch.allclose(draw(1.0, 1.0), LOGITS.exp(), atol=0.015)


def test_temperature_sharpens_before_the_cut() -> None:
    squared = LOGITS.exp() ** 2
    assert torch.allclose(draw(1.0, 0.5), squared / squared.sum(), atol=0.015)


def test_a_small_nucleus_is_the_best_token() -> None:
    assert draw(0.1, 1.0)[0] == 1.0


def test_a_row_depends_on_its_own_numbers_alone() -> None:
    uniforms = torch.rand((8, TRIES), generator=torch.Generator().manual_seed(1))
    ones = torch.ones(8)
    together, _ = sample(LOGITS.expand(8, -1), ones, ones, uniforms)
    alone = [int(sample(LOGITS[None], ones[:1], ones[:1], uniforms[i : i + 1])[0]) for i in range(8)]
    assert together.tolist() == alone

"""Distributions, uncertainty measures, ensembles, alignment and temperature."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy

from afdc_pipeline import scoring

shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=9)
logprobs = hnp.arrays(np.float64, shapes, elements=st.floats(-60, 0))


def draw_probs(rng: np.random.Generator, n: int, n_labels: int, sharp: float = 0.5) -> np.ndarray:
    return rng.dirichlet(np.full(n_labels, sharp), size=n) * 0.999 + 0.001 / n_labels


@given(logprobs)
def test_normalise_is_softmax(rows: np.ndarray) -> None:
    np.testing.assert_allclose(scoring.normalise(rows), softmax(rows, axis=1), atol=1e-12)
    np.testing.assert_allclose(scoring.normalise(rows - 1000.0), softmax(rows, axis=1), atol=1e-9)


def test_rejected_rows_stay_nan_everywhere() -> None:
    raw = np.array([[-1.0, -2.0, -3.0], [np.nan, np.nan, np.nan], [-np.inf, -np.inf, -np.inf], [-np.inf, -1.0, -1.0]])
    probs = scoring.normalise(raw)
    bad = [False, True, True, False]
    for values in (scoring.confidence(probs), scoring.margin(probs), scoring.entropy(probs)):
        assert np.isnan(values).tolist() == bad
    for measure in (scoring.jensen_shannon, scoring.vote_entropy):
        assert np.isnan(measure([probs, probs])).tolist() == bad
    assert scoring.labels(probs).tolist() == [0, -1, -1, 1]
    for after in (
        scoring.align(probs, np.ones(3)),
        scoring.apply_temperature(probs, 2.0),
        scoring.agree(probs, np.zeros(4, int), 0.8),
    ):
        assert np.isnan(after).any(axis=1).tolist() == bad
    assert probs[3].tolist() == [0.0, 0.5, 0.5]


@given(logprobs)
def test_measures_match_their_definitions(rows: np.ndarray) -> None:
    probs = scoring.normalise(rows)
    ordered = np.sort(probs, axis=1)
    np.testing.assert_allclose(scoring.margin(probs), ordered[:, -1] - ordered[:, -2], atol=1e-12)
    np.testing.assert_allclose(scoring.entropy(probs), scipy_entropy(probs, axis=1), atol=1e-9)
    np.testing.assert_array_equal(scoring.confidence(probs), ordered[:, -1])


def test_committee_measures() -> None:
    rng = np.random.default_rng(0)
    members = [draw_probs(rng, 50, 4) for _ in range(2)]
    wanted = [jensenshannon(a, b) ** 2 for a, b in zip(*members, strict=True)]
    np.testing.assert_allclose(scoring.disagreement(members), wanted, atol=1e-9)
    votes = scoring.disagreement(members, votes=True)
    same = scoring.labels(members[0]) == scoring.labels(members[1])
    np.testing.assert_allclose(votes, np.where(same, 0.0, np.log(2)), atol=1e-12)
    np.testing.assert_allclose(scoring.disagreement(members[:1]), 0.0, atol=1e-12)


def test_ensemble_is_the_mean_and_the_identity_for_one() -> None:
    rng = np.random.default_rng(1)
    members = [draw_probs(rng, 7, 3) for _ in range(3)]
    np.testing.assert_allclose(scoring.ensemble(members), np.mean(members, axis=0), atol=1e-15)
    assert scoring.ensemble(members[:1]) is members[0]
    with pytest.raises(ValueError, match="at least one"):
        scoring.ensemble([])


@given(st.integers(0, 10_000), st.integers(2, 8), st.sampled_from([0.3, 1.0, 5.0]))
def test_alignment_reaches_the_target_mix(seed: int, n_labels: int, sharp: float) -> None:
    rng = np.random.default_rng(seed)
    prior = rng.dirichlet(np.full(n_labels, 5.0))
    probs = scoring.reweight(draw_probs(rng, 400, n_labels, sharp), prior)
    target = rng.dirichlet(np.full(n_labels, 5.0))
    aligned = scoring.align(probs, target)
    np.testing.assert_allclose(aligned.sum(axis=1), 1.0)
    np.testing.assert_allclose(aligned.mean(axis=0), target, atol=1e-3)


def test_alignment_by_chunks_equals_alignment_at_once() -> None:
    probs = draw_probs(np.random.default_rng(2), 1000, 5)
    probs[17] = np.nan
    target = np.array([0.1, 0.2, 0.3, 0.2, 0.2])
    weights = scoring.alignment_weights(lambda: np.array_split(probs, 13), target)
    np.testing.assert_allclose(scoring.reweight(probs, weights), scoring.align(probs, target), atol=1e-9)


@pytest.mark.parametrize("target", [[0.5, 0.5, 0.0], [1.0, 1.0, 1.0]])
def test_alignment_survives_zeros(target: list[float]) -> None:
    one_hot = np.eye(3)[[0, 0, 0, 1, 0]]
    aligned = scoring.align(one_hot, np.array(target))
    np.testing.assert_allclose(aligned, one_hot, atol=1e-9)
    certain = np.array([[1.0, 0.0, 0.0], [0.6, 0.4, 0.0]])
    assert np.isfinite(scoring.align(certain, np.array(target))).all()


def test_prior_accumulator_skips_nan_and_starts_uniform() -> None:
    seen = scoring.PriorAccumulator(2)
    assert seen.mean().tolist() == [0.5, 0.5]
    seen.add(np.array([[1.0, 0.0], [np.nan, np.nan]]))
    seen.add(np.array([[0.5, 0.5]]))
    assert seen.count == 2
    assert seen.mean().tolist() == [0.75, 0.25]
    prior = scoring.label_prior(np.array([1.0, 0.0]))
    assert prior.min() > 0
    assert prior.sum() == pytest.approx(1)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_temperature_is_recovered(true_temperature: float) -> None:
    rng = np.random.default_rng(3)
    honest = draw_probs(rng, 5000, 4, 1.0)
    gold = (honest.cumsum(axis=1) > rng.random((5000, 1))).argmax(axis=1)
    scores = np.log(honest) * true_temperature
    fitted = scoring.fit_temperature(scores, gold)
    assert fitted == pytest.approx(true_temperature, rel=0.08)
    calibrated = scoring.apply_temperature(scoring.normalise(scores), fitted)
    np.testing.assert_array_equal(scoring.labels(calibrated), scoring.labels(honest))


def test_temperature_is_tame_with_few_rows() -> None:
    all_right = np.array([[-0.1, -5.0], [-4.0, -0.2]])
    assert 0.2 < scoring.fit_temperature(all_right, np.array([0, 1])) <= 1.0
    assert 1.0 <= scoring.fit_temperature(all_right, np.array([1, 0])) < 20.0
    assert scoring.fit_temperature(all_right, np.array([-1, -1])) == 1.0
    wide = np.random.default_rng(1).normal(0, 4, (500, 3))
    assert scoring.fit_temperature(wide, scoring.normalise(wide / 2.5)) == pytest.approx(2.5, rel=0.02)
    assert np.isfinite(scoring.fit_temperature(np.array([[-1.0, -np.inf]]), np.array([1])))


def test_agreement_product() -> None:
    probs = np.array([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.6, 0.3, 0.1]])
    joint = scoring.agree(probs, np.array([1, -1, 1]), 0.8)
    np.testing.assert_allclose(joint[0], np.array([0.6 * 0.1, 0.3 * 0.8, 0.1 * 0.1]) / 0.31)
    np.testing.assert_array_equal(joint[1], probs[1])
    np.testing.assert_allclose(joint[2], joint[0])
    blind = scoring.agree(probs, np.array([1, 2, 0]), 1 / 3)
    np.testing.assert_allclose(blind, probs)
    sure = scoring.agree(probs, np.array([2, 2, 2]), np.array([1.0, 1.0, 1.0]))
    np.testing.assert_allclose(sure, np.eye(3)[[2, 2, 2]])


def witnesses(
    seed: int, n: int = 40, silent: float = 0.3
) -> tuple[scoring.Witnesses, list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    members = [rng.dirichlet(np.ones(4), size=n) for _ in range(3)]
    votes = [rng.random(n) > silent for _ in members]
    for member, vote in zip(members, votes, strict=True):
        member[~vote & (rng.random(n) < 0.5)] = np.nan  # who has no say need not have been asked
    return scoring.Witnesses.of(members, votes, ["adapter", "encoder", "adapter"]), members, votes


@given(st.integers(0, 500))
def test_kinds_have_equal_says_and_only_those_that_have_one(seed: int) -> None:
    found, members, votes = witnesses(seed)
    mean, divided = found.mean(), found.divided()
    for at in range(40):
        kinds = [[0, 2], [1]]
        says = [
            np.mean([members[m][at] for m in kind if votes[m][at]], axis=0)
            for kind in kinds
            if any(votes[m][at] for m in kind)
        ]
        if not says:
            continue
        np.testing.assert_allclose(mean[at], np.mean(says, axis=0), atol=1e-9)
        assert divided[at] == (len({one.argmax() for one in says}) > 1)


def test_one_kind_is_the_plain_ensemble_and_never_divided() -> None:
    rng = np.random.default_rng(0)
    members = [rng.dirichlet(np.ones(3), size=9) for _ in range(2)]
    votes = [np.ones(9, dtype=bool)] * 2
    found = scoring.Witnesses.of(members, votes, ["adapter", "adapter"])
    np.testing.assert_allclose(found.mean(), scoring.ensemble(members), atol=1e-15)
    assert not found.divided().any()


def test_members_that_were_not_asked_do_not_count_for_disagreement() -> None:
    members = [np.array([[0.9, 0.1]]), np.array([[0.2, 0.8]]), np.array([[np.nan, np.nan]])]
    for votes in (True, False):
        np.testing.assert_allclose(
            scoring.disagreement(members, votes=votes), scoring.disagreement(members[:2], votes=votes)
        )
    assert np.isnan(scoring.disagreement([members[2]] * 2)).all()

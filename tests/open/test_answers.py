"""When answers count as one, how far samples agree, and which answer stands for all."""

from __future__ import annotations

import math

import pytest

from afdc_pipeline.answers import Sample, exact_match, judge, similarity, token_f1

LONG = "the parcel was left with a neighbour on the second floor"


def samples(*texts: str, logprob: float = -0.1) -> list[Sample]:
    return [Sample(text, logprob) for text in texts]


@pytest.mark.parametrize(("one", "other"), [("Blue kettle.", "blue  Kettle"), ("咖啡机。", "咖啡机"), ("A-4", "a 4")])
def test_case_space_and_punctuation_do_not_count(one: str, other: str) -> None:
    assert exact_match(one, other)


def test_token_f1_is_the_harmonic_mean_of_the_common_words() -> None:
    assert token_f1("red kettle", "red kettle") == 1.0
    assert token_f1("red kettle", "the red kettle") == pytest.approx(0.8)
    assert token_f1("red", "blue") == 0.0
    assert token_f1("", "") == 0.0


def test_short_answers_are_alike_only_when_they_are_equal() -> None:
    assert similarity("red kettle", "red kettles") == 0.0
    assert similarity("", "") == 0.0
    assert 0.7 < similarity(LONG, LONG.replace("second", "third")) < 1.0


def test_the_majority_wins_and_confidence_needs_agreement_and_probability() -> None:
    verdict = judge([samples("kettle", "Kettle", "pan"), samples("kettle", "lamp", "kettle")])
    assert verdict is not None
    assert exact_match(verdict.answer, "kettle")
    assert verdict.agreement == pytest.approx(4 / 6)
    assert verdict.confidence == pytest.approx(4 / 6 * math.exp(-0.1))
    assert verdict.margin == pytest.approx(3 / 6)
    assert verdict.disagreement > 0


def test_of_equal_groups_the_more_probable_answer_wins() -> None:
    verdict = judge([[Sample("pan", -2.0), Sample("lamp", -0.5)]])
    assert verdict is not None
    assert verdict.answer == "lamp"


def test_samples_without_an_answer_count_against_the_others_and_never_win() -> None:
    verdict = judge([samples("kettle", "", "")])
    assert verdict is not None
    assert verdict.answer == "kettle"
    assert verdict.agreement == pytest.approx(1 / 3)
    assert judge([samples("", "")]) is None


def test_one_mind_has_no_entropy_and_no_disagreement() -> None:
    verdict = judge([samples("kettle", "kettle"), samples("kettle", "kettle")])
    assert verdict is not None
    assert (verdict.agreement, verdict.margin, verdict.entropy, verdict.disagreement) == (1.0, 1.0, 0.0, 0.0)


def test_a_long_answer_is_the_one_nearest_to_all() -> None:
    texts = [LONG, LONG + " today", LONG.replace("second", "third"), "nobody has seen it in the last seven days at all"]
    verdict = judge([samples(*texts)])
    assert verdict is not None
    assert verdict.answer == LONG
    assert 0.5 < verdict.agreement < 1.0
    assert verdict.margin == pytest.approx(0.5)


def test_the_order_of_the_samples_does_not_matter() -> None:
    one = judge([samples("a", "b", "b", "c")])
    other = judge([samples("c", "b", "a", "b")])
    assert one == other

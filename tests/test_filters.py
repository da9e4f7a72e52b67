"""What is taken off a completion, and for which reason a text is left out."""

# ruff: noqa: RUF001 # full-width punctuation is what Chinese texts have
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afdc.task import Task
from afdc_pipeline.filters import REASONS, Style, TextLimits, clean_variant, count_units, is_repetitive, reject_reason
from afdc_pipeline.rows import Seed

TASK = Task.model_validate({"instruction": "Say what the message is about.", "labels": ["refund", "card arrival"]})
CHINESE = Task.model_validate({"instruction": "判断留言属于哪一类。", "labels": ["退款", "物流"]})


def limits(*texts: str, task: Task = TASK) -> TextLimits:
    return TextLimits.from_seeds([Seed(id=text, text=text, label=task.names[0]) for text in texts], task)


ENGLISH_LIMITS = limits("I want my money back for the broken kettle.", "Please refund the shoes")
CHINESE_LIMITS = limits("我要退款，水壶坏了。", "请把鞋子的钱退给我", task=CHINESE)


@pytest.mark.parametrize(
    ("raw", "style", "cleaned"),
    [
        (" Where is my card?\n- Next", "continuation", "Where is my card?"),
        ("- Where is it?", "continuation", "Where is it?"),
        ("7. Where is it?", "continuation", "Where is it?"),
        ("2.5 kilos are missing", "continuation", "2.5 kilos are missing"),
        ("3、卡在哪里？", "continuation", "卡在哪里？"),
        ("refund: give it back", "continuation", "give it back"),
        ("退款：请退钱", "continuation", "请退钱"),
        ('"Where is it?"', "chat", "Where is it?"),
        ("「卡在哪里？」", "chat", "卡在哪里？"),
        ('"One" and "two"', "chat", '"One" and "two"'),
        ("Label: refund\nText: give it back", "chat", "give it back"),
        ("**card arrival:** Where is it?", "chat", "Where is it?"),
        ("1. Where is it?\n2. Is it lost?", "chat", "Where is it?"),
        ("Dear all,\nwhere is it?", "chat", "Dear all,\nwhere is it?"),
        ('1. "refund: give it back"', "chat", "give it back"),
        ("类别：退款\n留言：请退钱", "chat", "请退钱"),
        ("**标签**: 物流\n包裹到哪里了？", "chat", "包裹到哪里了？"),
        ("留言：包裹到哪里了？\n类别：物流", "chat", "包裹到哪里了？"),
        ("1、文本:请退钱", "chat", "请退钱"),
        ("Categoría: refund\nMensaje: give it back", "chat", "give it back"),
        ("Message: give it back", "continuation", "Message: give it back"),
        ("https://shop.example is down", "chat", "https://shop.example is down"),
        ("At 12:30 it was not here", "chat", "At 12:30 it was not here"),
        ("12: it was not here", "chat", "12: it was not here"),
        ("This is long: it was not here", "chat", "This is long: it was not here"),
        ("cafe\u0301", "chat", "café"),
    ],
)
def test_cleaning(raw: str, style: Style, cleaned: str) -> None:
    assert clean_variant(raw, style, labels=(*TASK.names, *CHINESE.names)) == cleaned


def test_a_heading_word_that_seeds_have_stays() -> None:
    own = limits("Question: where is my card?", "Is it lost?")
    assert own.headed
    assert not ENGLISH_LIMITS.headed
    assert clean_variant("Question: is it late?", "chat", headed=own.headed) == "Question: is it late?"
    assert clean_variant("问题：卡丢了吗？", "chat", headed=True) == "问题：卡丢了吗？"


def test_line_breaks_come_back() -> None:
    assert clean_variant("one <br>two\n- three", "continuation", line_break="<br>") == "one\ntwo"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The lamp arrived broken, refund me please", None),
        ("", "empty"),
        (" \u200b ", "empty"),
        ("The lamp \ufffd is broken", "bad_encoding"),
        ("The lamp \x07 is broken", "control_characters"),
        ("The lamp is broken<|im_end|>", "markup"),
        ("assistant: here is a new text", "markup"),
        ("The lamp is\nbroken", "extra_lines"),
        ("Card  arrival!", "echo_prompt"),
        ("Say what the message is about: the lamp", "echo_prompt"),
        ("A late card arrival is a bother", None),
        ("Lamp", "too_short"),
        ("Please refund the lamp " * 10, "too_long"),
        ("Лампа сломана, верните деньги", "wrong_script"),
        ("the lamp the lamp the lamp the lamp the", "repetitive"),
        ("Please refund nooooooooooooooooooooooooooo", "repetitive"),
    ],
)
def test_reasons_in_english(text: str, reason: str | None) -> None:
    assert reject_reason(text, ENGLISH_LIMITS) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("灯坏了，我想退款", None),
        ("买的iPhone 15坏了，退钱", None),
        ("Please refund my money now", "wrong_script"),
        ("物流", "echo_prompt"),
        ("退", "too_short"),
        ("退钱吧", None),
        ("退款退款退款退款退款", "repetitive"),
        ("哈哈哈，又坏了，退款吧", None),
    ],
)
def test_reasons_in_chinese(text: str, reason: str | None) -> None:
    assert reject_reason(text, CHINESE_LIMITS) == reason


def test_reasons_from_the_engine() -> None:
    text = "The lamp arrived broken"
    assert reject_reason(text, ENGLISH_LIMITS, finished=False) == "unfinished"
    assert reject_reason(text, ENGLISH_LIMITS, mean_logprob=-6.0, min_mean_logprob=-5.0) == "unlikely"
    assert reject_reason(text, ENGLISH_LIMITS, mean_logprob=None, min_mean_logprob=-5.0) is None


def test_what_a_seed_does_is_allowed() -> None:
    own = limits("Why does <|im_end|> show up?\nIt is <s> odd", "system: no no no no no no no no no")
    assert reject_reason("The token <|endoftext|> shows\nup", own) is None
    assert reject_reason("so so so so so so so so so", own) is None


def test_units_count_words_and_cjk_characters() -> None:
    assert count_units("don't panic, 42 times") == 5
    assert count_units("我要退款 iPhone") == 5


def test_an_ordinary_text_is_not_repetitive() -> None:
    assert not is_repetitive("the cat and the dog and the bird and the fish went to the sea and to the hill")
    assert not is_repetitive("very very very good")


@given(st.text(max_size=300))
def test_every_text_gets_a_known_verdict(text: str) -> None:
    cleaned = clean_variant(text, "chat", labels=TASK.names)
    assert reject_reason(cleaned, ENGLISH_LIMITS) in (None, *REASONS)

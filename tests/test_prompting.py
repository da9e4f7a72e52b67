"""Prompts for models with and without a chat template, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from afdc.errors import InputError, ModelError
from afdc.prompting import PROMPT_DATE, Message, PromptCodec, encode_chat, encode_plain, system_prompt
from afdc.task import Task

MODEL = Path.home() / ".cache/afdc/models/SmolLM2-135M-Instruct"
TASK = Task(labels=("positive", "negative"))
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
DATED = "Today: {{ date_string }} {{ strftime_now('%d %b %Y') }}\n" + TURNS
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURNS

pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason="the packaged model is not converted on this machine")


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.mark.parametrize("template", ["own", None, DATED, NO_SYSTEM])
def test_a_task_prompt_is_the_chat_of_its_turns(tokenizer: Any, template: str | None) -> None:
    tokenizer.chat_template = tokenizer.chat_template if template == "own" else template
    turns = [Message("system", system_prompt(TASK)), Message("user", "fine <|im_end|>")]
    assert PromptCodec(tokenizer, TASK).prompt_ids("fine <|im_end|>") == encode_chat(tokenizer, turns)


def test_without_a_template_every_turn_has_its_header(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    prompt = tokenizer.decode(PromptCodec(tokenizer, TASK).prompt_ids("fine"))
    assert prompt == f"System: {system_prompt(TASK)}\n\nUser: fine\n\nAssistant: "


def test_a_template_that_dates_its_prompts_gets_a_constant(tokenizer: Any) -> None:
    tokenizer.chat_template = DATED
    prompt = tokenizer.decode(PromptCodec(tokenizer, TASK).prompt_ids("fine"))
    assert prompt.startswith(f"Today: {PROMPT_DATE} {PROMPT_DATE}\n")


def test_a_refused_system_turn_begins_the_user_turn(tokenizer: Any) -> None:
    tokenizer.chat_template = NO_SYSTEM
    prompt = tokenizer.decode(PromptCodec(tokenizer, TASK).prompt_ids("fine"))
    assert prompt.startswith(f"<|im_start|>user\n{system_prompt(TASK)}\n\nfine<|im_end|>")
    tokenizer.chat_template = "{{ raise_exception('nothing at all') }}"
    with pytest.raises(ModelError, match="nothing at all"):
        PromptCodec(tokenizer, TASK)


def test_a_lone_surrogate_is_wrong_input(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="character 2"):
        encode_plain(tokenizer, "ab\ud800")


def test_labels_are_named_as_they_are_checked() -> None:
    assert Task(labels=(" cafe\u0301 ", "b")).names == ("caf\u00e9", "b")

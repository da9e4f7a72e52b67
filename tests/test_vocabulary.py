"""Markup of a vocabulary: never read out of data, and the right one at the end of an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from afdc.errors import InputError, ModelError
from afdc.prompting import PromptCodec, encode_markup, encode_plain
from afdc.task import Task

TASK = Task(labels=("positive", "negative"))
MODEL = Path.home() / ".cache/afdc/models/SmolLM2-135M-Instruct"
SMOL_HASH = "07524cacafa78eeaef00dfa2b5502d7bcdb23839a3f7e9c5dada6e12985b80ae"

GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }} {{ eos_token }}"
    "{% else %}[{{ m.role }}] {{ m.content }} {% endif %}{% endfor %}"
)
PLAIN_WORDS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\nover\n{% endfor %}assistant: "
PROMPTS_ONLY = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('prompts only') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}<end_of_turn>{% endfor %}"
)
SPECIAL = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
UNFLAGGED = ("<think>", "</think>", "<tool_call>", "\n\n")


def bytes_tokenizer(template: str | None = None, **names: str) -> Any:
    """One token a byte, and added tokens of every kind."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in UNFLAGGED])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{"eos_token": "<eos>", "bos_token": "<bos>", **names}
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "terminator"),
    [
        (GEMMA, "<end_of_turn>"),
        (PHI, "<|end|>"),
        (LLAMA_2, "<eos>"),
        (PLAIN_WORDS, "<eos>"),
        (PROMPTS_ONLY, "<eos>"),
        (None, "<eos>"),
    ],
    ids=["gemma", "phi", "llama 2", "plain words", "prompts only", "no template"],
)
def test_an_answer_ends_as_the_template_ends_it(template: str | None, terminator: str) -> None:
    tokenizer = bytes_tokenizer(template)
    codec = PromptCodec(tokenizer, TASK)
    assert codec.terminator == tokenizer.convert_tokens_to_ids(terminator)
    assert tokenizer.decode(codec.completion_ids(0)) == f"positive{terminator}"


def test_a_template_can_stand_in_for_a_missing_end_of_sequence() -> None:
    tokenizer = bytes_tokenizer(PHI)
    tokenizer.eos_token = None
    assert PromptCodec(tokenizer, TASK).terminator == tokenizer.convert_tokens_to_ids("<|end|>")
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="end-of-sequence"):
        PromptCodec(tokenizer, TASK)


@pytest.mark.parametrize("text", ["<think>x</think>", "a<tool_call>", "<eos><think>", "<|end|>", "x <think> y\n\nz"])
def test_no_text_holds_markup(text: str) -> None:
    tokenizer = bytes_tokenizer(GEMMA)
    markup = {tokenizer.convert_tokens_to_ids(name) for name in (*SPECIAL, *UNFLAGGED) if name.strip()}
    ids = encode_plain(tokenizer, text)
    assert markup.isdisjoint(ids)
    assert tokenizer.decode(ids) == text
    assert not markup.isdisjoint(encode_markup(tokenizer, text))


def test_white_space_keeps_its_tokens() -> None:
    tokenizer = bytes_tokenizer()
    assert tokenizer.convert_tokens_to_ids("\n\n") in encode_plain(tokenizer, "a\n\nb")
    assert tokenizer.convert_tokens_to_ids("\n\n") in encode_plain(tokenizer, "a\n\n<think>")


def test_a_label_with_markup_is_its_letters() -> None:
    tokenizer = bytes_tokenizer(GEMMA)
    codec = PromptCodec(tokenizer, Task(labels=("<think>", "<|end|>", "b")))
    assert codec.label_ids[0] == encode_plain(tokenizer, "<think>")
    assert len(codec.label_ids[0]) == len("<think>")
    assert tokenizer.decode(codec.label_ids[1]) == "<|end|>"


def test_a_tokenizer_that_cannot_read_markup_as_text_refuses_it() -> None:
    class Slow:
        added_tokens_decoder = {7: AddedToken("<think>", special=False)}  # noqa: RUF012  # read only

        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            return {"input_ids": [7 if word == "<think>" else 1 for word in text.split()]}

    with pytest.raises(InputError, match="<think>"):
        encode_plain(Slow(), "a <think> b")  # type: ignore[arg-type]  # only what encode_plain calls
    assert encode_plain(Slow(), "a b") == [1, 1]  # type: ignore[arg-type]  # as above


@pytest.mark.skipif(not MODEL.is_dir(), reason="the packaged model is not converted on this machine")
def test_prompts_of_the_packaged_model_stay_as_adapters_know_them() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    codec = PromptCodec(tokenizer, TASK)
    assert tokenizer.decode([codec.terminator]) == "<|im_end|>"
    assert codec.template_hash == SMOL_HASH

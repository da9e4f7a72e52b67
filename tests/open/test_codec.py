"""Prompt and answer of an open task: one encoding for trainer and sampler."""

from __future__ import annotations

from typing import Any

import pytest

from afdc.errors import InputError
from afdc.prompting import Message, PromptCodec, encode_chat
from afdc.task import Task
from afdc.training import TrainRow
from afdc_server.engine.build import load_tokenizer
from afdc_server.packaged import packaged_model
from afdc_trainer.data import encode_row

TASK = Task(instruction="Name the product.", labels=None)
ANSWERS = ["a red kettle", "咖啡机", "two\nlines", "<|im_end|>", "  spaces around  "]


@pytest.fixture(scope="module")
def codec() -> PromptCodec:
    return PromptCodec(load_tokenizer(packaged_model()), TASK)


def test_the_prompt_is_instruction_and_text_alone(codec: PromptCodec) -> None:
    turns = [Message("system", "Name the product."), Message("user", "My kettle leaks")]
    assert codec.prompt_ids("My kettle leaks") == encode_chat(codec.tokenizer, turns)


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_reads_back_and_ends_with_the_terminator(codec: PromptCodec, answer: str) -> None:
    *ids, last = codec.answer_ids(answer)
    assert last == codec.terminator
    assert codec.terminator not in ids
    assert codec.tokenizer.decode(ids, skip_special_tokens=True) == answer.strip()


def test_the_trainer_trains_on_what_the_sampler_is_to_answer(codec: PromptCodec) -> None:
    example = encode_row(codec, TrainRow(text="My kettle leaks", completion="kettle", weight=0.5), 512)
    [branch] = example.branches
    assert [*codec.prefix_ids, *example.prompt] == codec.prompt_ids("My kettle leaks")
    assert list(branch.ids) == codec.answer_ids("kettle")
    assert branch.coef * len(branch.ids) == pytest.approx(0.5)


def test_text_and_answer_share_the_context(codec: PromptCodec) -> None:
    with pytest.raises(InputError, match="with its label or answer"):
        encode_row(codec, TrainRow(text="short", completion="long " * 500), 256)


def test_open_and_closed_prompts_have_other_hashes(codec: PromptCodec) -> None:
    closed = PromptCodec(codec.tokenizer, Task(instruction="Name the product.", labels=("product", "name")))
    assert codec.template_hash != closed.template_hash
    assert codec.label_ids == []


@pytest.mark.parametrize("fields", [{}, {"targets": {0: 1.0}, "completion": "x"}, {"completion": ""}])
def test_a_row_has_either_targets_or_a_completion(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="either"):
        TrainRow(text="x", **fields)


def test_a_labelled_row_is_written_as_ever() -> None:
    row = TrainRow(text="x", targets={1: 1.0}, gold=True)
    assert row.to_line() == b'{"text":"x","targets":{"1":1.0},"weight":1.0,"gold":true}\n'

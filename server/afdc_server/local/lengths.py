"""Whether the user's own texts fit into the model, asked before an engine starts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from afdc.errors import InputError
from afdc.inputs import read_examples
from afdc.prompting import PromptCodec
from afdc_pipeline.stages.answer import answer_room
from afdc_server.engine.build import load_tokenizer, model_length
from afdc_server.local.request import CheckedRequest, RunRequest
from afdc_server.models import ModelRef

MIN_TEXT_TOKENS = 8


def check_lengths(checked: CheckedRequest, request: RunRequest, model: ModelRef) -> None:
    """Check the task's template, every seed and every --eval text against the context length.

    Raises:
        InputError: a text or the task itself is too long.
        ModelError: the model's template or vocabulary cannot express the task.
    """
    limit = min(request.config.engine.max_model_len, model_length(model.path))
    codec = PromptCodec(load_tokenizer(model.path), checked.task)
    _check_template(codec, limit, request)
    if checked.task.is_open:
        _check_answers(codec, limit, request, checked)
        return
    _check_texts(codec, limit, request.seeds, (seed.text for seed in checked.seeds))
    if request.eval is not None:
        _check_texts(codec, limit, request.eval, (example.text for example in checked.eval))


def _check_answers(codec: PromptCodec, limit: int, request: RunRequest, checked: CheckedRequest) -> None:
    """Every seed's answer is one that may be sampled, and every text leaves room for the longest such answer."""
    room = answer_room(request.config.answer, (seed.label for seed in checked.seeds), limit)
    for seed in checked.seeds:
        have = len(codec.answer_ids(seed.label))
        if have > room:
            raise InputError(
                f"{seed.label[:40]!r}...: the answer has {have} tokens and {room} are allowed",
                path=str(request.seeds),
                line=_line_of(request.seeds, seed.text),
                remedy="Shorten it, or raise answer.max_tokens or engine.max_model_len",
            )
    _check_texts(codec, limit - room, request.seeds, (seed.text for seed in checked.seeds))
    if request.eval is not None:
        _check_texts(codec, limit - room, request.eval, (example.text for example in checked.eval))


def _check_texts(codec: PromptCodec, limit: int, path: Path, texts: Iterable[str]) -> None:
    for text in texts:
        try:
            codec.check_length(text, limit)
        except InputError as exc:
            message = f"{text[:40]!r}...: {exc.message}"
            raise InputError(message, path=str(path), line=_line_of(path, text), remedy=exc.remedy) from exc


def _check_template(codec: PromptCodec, limit: int, request: RunRequest) -> None:
    """Instruction and labels must leave room for a text; otherwise the first text would be blamed for them."""
    have, room = len(codec.prompt_ids("")), codec.max_prompt_tokens(limit)
    if room - have < MIN_TEXT_TOKENS:
        raise InputError(
            f"the instruction takes {have} tokens, and {room} fit beside the longest answer, the text included",
            path=str(request.task or request.seeds),
            remedy="Shorten instruction, descriptions or labels, or raise engine.max_model_len",
        )


def _line_of(path: Path, text: str) -> int | None:
    """The line of a text in a file of examples; read again, since only a message needs it."""
    return next((one.line for one in read_examples(path) if one.text == text), None)

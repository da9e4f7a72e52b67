"""The one place where a task, a text and a label become token ids.

The engine scores exactly these ids and the trainer trains on exactly these ids: both call `PromptCodec`.
Text from outside is data. It is encoded with special tokens as plain text, so "<|im_end|>" inside a text stays five
ordinary tokens and can neither end a turn nor begin one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

from afdc.errors import InputError, ModelError
from afdc.files import canonical_json, sha256_bytes
from afdc.task import Task, normalise_text

SENTINEL = "\u2402AFDC{}\u2403"
LISTED_LABELS = 128


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    chat_template: str | None
    eos_token_id: int | None
    bos_token_id: int | None

    def __call__(self, text: str, **options: Any) -> Any: ...

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any: ...

    def decode(self, token_ids: Sequence[int], **options: Any) -> Any: ...


@dataclass(frozen=True)
class Message:
    """One chat turn; `content` is data and is never parsed for special tokens."""

    role: str
    content: str


def encode_plain(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of `text` with nothing added and special tokens read as ordinary characters."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def encode_markup(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of template text, in which special tokens are special."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])


def encode_continuation(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of raw text to continue: the begin token, where the model has one of its own, then plain text."""
    start = list(tokenizer("", add_special_tokens=True)["input_ids"])
    bos = start[:1] if start and start[0] == tokenizer.bos_token_id else []
    return [*bos, *encode_plain(tokenizer, text)]


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation that ends where the assistant's answer starts."""
    ids: list[int] = []
    for piece in _chat_pieces(tokenizer, messages):
        ids += encode_plain(tokenizer, piece.text) if piece.is_data else encode_markup(tokenizer, piece.text)
    return ids


@dataclass(frozen=True)
class _Piece:
    text: str
    is_data: bool


def _chat_pieces(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[_Piece]:
    """Render the template around stand-ins and cut it there: markup, data, markup, data, ..., markup."""
    if not tokenizer.chat_template:
        return _plain_pieces(messages)
    stand_ins = [SENTINEL.format(i) for i in range(len(messages))]
    turns = [{"role": m.role, "content": s} for m, s in zip(messages, stand_ins, strict=True)]
    rest = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False))
    pieces: list[_Piece] = []
    for message, stand_in in zip(messages, stand_ins, strict=True):
        head, found, rest = rest.partition(stand_in)
        if not found:
            raise ModelError(
                f"the model's chat template leaves out the {message.role} turn",
                remedy="Use an instruct model whose template takes system and user turns",
            )
        pieces += [_Piece(head, False), _Piece(message.content, True)]
    return [*pieces, _Piece(rest, False)]


def _plain_pieces(messages: Sequence[Message]) -> list[_Piece]:
    """A model without a chat template gets one line of header a turn."""
    pieces: list[_Piece] = []
    for message in messages:
        pieces += [_Piece(f"{message.role.title()}: ", False), _Piece(message.content, True), _Piece("\n\n", False)]
    return [*pieces, _Piece("Assistant: ", False)]


class PromptCodec:
    """Token ids for one task on one tokenizer.

    The prompt is system = instruction (and label list), user = text, assistant = label. The part before the text is the
    same for every text, so the engine's prefix cache computes it once an adapter.

    Attributes:
        label_ids: for each label the ids of its name, in the order of `task.labels`, without the terminator.
        terminator: id of the end-of-turn token that the trainer adds after each label.
    """

    def __init__(self, tokenizer: Tokenizer, task: Task) -> None:
        self.tokenizer = tokenizer
        self.task = task
        pieces = _chat_pieces(tokenizer, [Message("system", system_prompt(task)), Message("user", "")])
        self.prefix_ids: list[int] = []
        for piece in pieces[:3]:
            encode = encode_plain if piece.is_data else encode_markup
            self.prefix_ids += encode(tokenizer, piece.text)
        self.suffix_ids = encode_markup(tokenizer, pieces[-1].text)
        if tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-sequence token", remedy="Use an instruct model")
        self.terminator: int = tokenizer.eos_token_id
        self.label_ids = [self._encode_label(name, pieces[-1].text) for name in task.names]

    def prompt_ids(self, text: str) -> list[int]:
        """Ids up to where the answer starts."""
        return [*self.prefix_ids, *self.text_ids(text), *self.suffix_ids]

    def text_ids(self, text: str) -> list[int]:
        """Ids of the text alone: what differs from prompt to prompt."""
        return encode_plain(self.tokenizer, normalise_text(text))

    def completion_ids(self, label_index: int) -> list[int]:
        """Ids that the trainer puts after the prompt: the label and the terminator."""
        return [*self.label_ids[label_index], self.terminator]

    @cached_property
    def scored_ids(self) -> list[tuple[int, ...]]:
        """Ids whose summed log-probability is a label's score.

        The terminator is scored only where it is needed to tell labels apart, that is where the ids of one label begin
        those of another; elsewhere the label's own ids already name exactly one label.
        """
        paths = [tuple(ids) for ids in self.label_ids]
        if is_prefix_free(paths):
            return paths
        return [(*path, self.terminator) for path in paths]

    @cached_property
    def template_hash(self) -> str:
        """SHA-256 over every id that does not come from the text: equal hashes mean equal prompts, token for token."""
        ids = [self.prefix_ids, self.suffix_ids, self.label_ids, self.terminator]
        return sha256_bytes(canonical_json(ids))

    def max_prompt_tokens(self, max_model_len: int) -> int:
        """Longest prompt, in tokens, that leaves room for the longest label and its terminator."""
        return max_model_len - max(map(len, self.label_ids)) - 1

    def check_length(self, text: str, max_model_len: int) -> None:
        """Refuse a text that does not fit.

        Raises:
            InputError: with the number of tokens and the limit.
        """
        have, limit = len(self.prompt_ids(text)), self.max_prompt_tokens(max_model_len)
        if have > limit:
            raise InputError(
                f"the text needs a prompt of {have} tokens and {limit} fit",
                remedy="Shorten it or raise engine.max_model_len",
            )

    def _encode_label(self, name: str, header: str) -> list[int]:
        """Encode the label behind the assistant header, as one string where the header's ids survive that."""
        joint = encode_markup(self.tokenizer, header + name)
        plain = encode_plain(self.tokenizer, name)
        n = len(self.suffix_ids)
        has_markup = encode_markup(self.tokenizer, name) != plain
        ids = joint[n:] if joint[:n] == self.suffix_ids and not has_markup else plain
        if not ids:
            raise ModelError(f"label {name!r} has no tokens in this model's vocabulary", remedy="Rename the label")
        return ids


def is_prefix_free(paths: Sequence[tuple[int, ...]]) -> bool:
    """True when no sequence begins another (equal sequences count as beginning each other)."""
    ordered = sorted(paths)
    return all(b[: len(a)] != a for a, b in pairwise(ordered))


def system_prompt(task: Task) -> str:
    """Instruction, then the labels where the instruction does not name them all and the list is short."""
    text = normalise_text(task.instruction)
    described = [label for label in task.labels if label.description]
    named = all(name.casefold() in text.casefold() for name in task.names)
    if described and len(task.labels) <= LISTED_LABELS:
        lines = [
            f"- {label.name}: {label.description}" if label.description else f"- {label.name}" for label in task.labels
        ]
        return "\n".join([text, *lines])
    if named or len(task.labels) > LISTED_LABELS:
        return text
    return "\n".join([text, *(f"- {name}" for name in task.names)])

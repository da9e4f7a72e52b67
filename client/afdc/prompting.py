"""The one place where a task, a text and a label become token ids.

The engine scores exactly these ids and the trainer trains on exactly these ids: both call `PromptCodec`.
Text from outside is data. It is encoded with special tokens and all other markup as plain text, so "<|im_end|>" inside
a text stays five ordinary tokens and can neither end a turn nor begin one.
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
from afdc.vocabulary import begin_ids, encode_data, leading_markup

SENTINEL = "\u2402AFDC{}\u2403"
LISTED_LABELS = 128
PROMPT_DATE = "01 Jan 2026"  # for templates that name a date: the same prompt every day


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    chat_template: str | None
    eos_token_id: int | None
    bos_token_id: int | None

    def __hash__(self) -> int: ...

    def __call__(self, text: str, **options: Any) -> Any: ...

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any: ...

    def decode(self, token_ids: Sequence[int], **options: Any) -> Any: ...


@dataclass(frozen=True)
class Message:
    """One chat turn; `content` is data and is never parsed for special tokens."""

    role: str
    content: str


def encode_plain(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of `text` with nothing added and markup read as ordinary characters.

    Raises:
        InputError: the text holds half of a surrogate pair, which no tokenizer takes, or markup that this one cannot
            read as text.
    """
    check_unicode(text)
    return encode_data(tokenizer, text)


def check_unicode(text: str) -> None:
    """Refuse text that has no UTF-8 form.

    Raises:
        InputError: says where the first lone surrogate is.
    """
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InputError(f"the text is not valid Unicode: a lone surrogate at character {exc.start}") from exc


def encode_markup(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of template text, in which special tokens are special."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])


def encode_continuation(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of raw text to continue: the begin token, where the model has one of its own, then plain text."""
    return [*begin_ids(tokenizer), *encode_plain(tokenizer, text)]


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation that ends where the assistant's answer starts."""
    return _encode_pieces(tokenizer, _chat_pieces(tokenizer, messages))


@dataclass(frozen=True)
class _Piece:
    text: str
    is_data: bool


def _encode_pieces(tokenizer: Tokenizer, pieces: Sequence[_Piece]) -> list[int]:
    """Ids of a prompt from its start; a chat template writes the begin token itself."""
    ids = [] if tokenizer.chat_template else [*begin_ids(tokenizer)]
    for piece in pieces:
        ids += encode_plain(tokenizer, piece.text) if piece.is_data else encode_markup(tokenizer, piece.text)
    return ids


def _chat_pieces(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[_Piece]:
    """Render the template around stand-ins and cut it there: markup, data, markup, data, ..., markup."""
    if not tokenizer.chat_template:
        return _plain_pieces(messages)
    stand_ins = [SENTINEL.format(i) for i in range(len(messages))]
    turns = [{"role": m.role, "content": s} for m, s in zip(messages, stand_ins, strict=True)]
    rest = _render(tokenizer, turns)
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


def _turn_end(tokenizer: Tokenizer) -> int:
    """Id of the token that ends an answer: what the chat template writes behind one, else the end-of-sequence token.

    The two differ in some models (Gemma: <end_of_turn> and <eos>, Phi-3: <|end|> and <|endoftext|>).

    Raises:
        ModelError: there is neither.
    """
    end = leading_markup(tokenizer, _behind_an_answer(tokenizer)) if tokenizer.chat_template else None
    end = tokenizer.eos_token_id if end is None else end
    if end is None:
        raise ModelError("the tokenizer has no end-of-sequence token", remedy="Use an instruct model")
    return end


def _behind_an_answer(tokenizer: Tokenizer) -> str:
    roles = ("system", "user", "assistant")
    turns = [{"role": role, "content": SENTINEL.format(i)} for i, role in enumerate(roles)]
    try:
        rendered = _render(tokenizer, turns, ask=False)
    except ModelError:  # a template for prompts alone
        return ""
    return rendered.partition(turns[-1]["content"])[2]


def _render(tokenizer: Tokenizer, turns: list[dict[str, str]], *, ask: bool = True) -> str:
    """The rendered template; where it refuses a system turn, that turn's text begins the user turn instead.

    Args:
        ask: end with the header of the answer that is to come.
    """
    from jinja2 import TemplateError  # comes with transformers; a client without models has neither

    try:
        return _apply_template(tokenizer, turns, ask)
    except TemplateError as exc:
        refusal = exc
    if [turn["role"] for turn in turns[:2]] == ["system", "user"]:
        system, user, *others = turns
        merged = {"role": "user", "content": f"{system['content']}\n\n{user['content']}"}
        try:
            return _apply_template(tokenizer, [merged, *others], ask)
        except TemplateError as exc:
            refusal = exc
    raise ModelError(f"the model's chat template fails: {refusal}", remedy="Use another instruct model") from refusal


def _apply_template(tokenizer: Tokenizer, turns: list[dict[str, str]], ask: bool) -> str:
    options = {"date_string": PROMPT_DATE, "strftime_now": lambda _format: PROMPT_DATE, "enable_thinking": False}
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask, **options))


def _plain_pieces(messages: Sequence[Message]) -> list[_Piece]:
    """A model without a chat template gets a header before each turn and a blank line between turns."""
    pieces: list[_Piece] = []
    for message in messages:
        gap = "\n\n" if pieces else ""
        pieces += [_Piece(f"{gap}{message.role.title()}: ", False), _Piece(message.content, True)]
    return [*pieces, _Piece("\n\nAssistant: " if pieces else "Assistant: ", False)]


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
        user = max(i for i, piece in enumerate(pieces) if piece.is_data)
        header = "".join(piece.text for piece in pieces[user + 1 :])
        self.prefix_ids = _encode_pieces(tokenizer, pieces[:user])
        self.suffix_ids = encode_markup(tokenizer, header)
        self.terminator = _turn_end(tokenizer)
        self._header = header
        self.label_ids = [self._encode_answer(name) for name in task.names]
        self._check_distinct()

    def prompt_ids(self, text: str) -> list[int]:
        """Ids up to where the answer starts."""
        return [*self.prefix_ids, *self.text_ids(text), *self.suffix_ids]

    def text_ids(self, text: str) -> list[int]:
        """Ids of the text alone: what differs from prompt to prompt."""
        return encode_plain(self.tokenizer, normalise_text(text))

    def answer_ids(self, answer: str) -> list[int]:
        """Ids after the prompt of an open task: trained on, and what a sampler is to give back. Raises InputError."""
        return [*self._encode_answer(normalise_text(answer)), self.terminator]

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
        return max_model_len - max(map(len, self.label_ids), default=0) - 1

    def check_length(self, text: str, max_model_len: int) -> None:
        """Refuse a text that does not fit beside the longest label.

        Raises:
            InputError: with the number of tokens and the limit.
        """
        have, limit = len(self.prompt_ids(text)), self.max_prompt_tokens(max_model_len)
        if have > limit:
            raise InputError(
                f"the text needs a prompt of {have} tokens and {limit} fit",
                remedy="Shorten it or raise engine.max_model_len",
            )

    def _encode_answer(self, name: str) -> list[int]:
        """Encode a label or an answer behind the header, as one string where the header's ids survive that."""
        plain = encode_plain(self.tokenizer, name)
        joint = encode_markup(self.tokenizer, self._header + name)
        n = len(self.suffix_ids)
        has_markup = encode_markup(self.tokenizer, name) != plain
        ids = joint[n:] if joint[:n] == self.suffix_ids and not has_markup else plain
        if not ids:
            raise ModelError(f"{name!r} has no tokens in this model's vocabulary", remedy="Write it another way")
        return ids

    def _check_distinct(self) -> None:
        first: dict[tuple[int, ...], str] = {}
        for name, ids in zip(self.task.names, self.label_ids, strict=True):
            other = first.setdefault(tuple(ids), name)
            if other != name:
                raise ModelError(
                    f"labels {other!r} and {name!r} have the same tokens in this model's vocabulary",
                    remedy="Rename one of them",
                )


def is_prefix_free(paths: Sequence[tuple[int, ...]]) -> bool:
    """True when no sequence begins another (equal sequences count as beginning each other)."""
    ordered = sorted(paths)
    return all(b[: len(a)] != a for a, b in pairwise(ordered))


def system_prompt(task: Task) -> str:
    """Instruction, then the labels, if any, where the instruction does not name them all and the list is short."""
    text = normalise_text(task.instruction)
    described = [label for label in task.classes if label.description]
    named = all(name.casefold() in text.casefold() for name in task.names)
    if described and len(task.names) <= LISTED_LABELS:
        lines = [
            f"- {label.name}: {label.description}" if label.description else f"- {label.name}" for label in task.classes
        ]
        return "\n".join([text, *lines])
    if named or len(task.names) > LISTED_LABELS:
        return text
    return "\n".join([text, *(f"- {name}" for name in task.names)])

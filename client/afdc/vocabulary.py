"""The added tokens of a tokenizer: which are markup, how text is encoded without any, and which one ends a turn.

Added tokens are matched before the text is split into ordinary tokens. Those flagged "special" can be switched off; the
others (`<think>` and the tool-call tags of Qwen3, `</s>` of Phi-3) cannot, although they are markup just the same. Runs
of white space (Gemma, GPT-NeoX) are ordinary text in whatever list a vocabulary keeps them.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from afdc.errors import InputError

WORD_MARK = "\u2581"  # SentencePiece's stand-in for a space


@lru_cache(maxsize=8)
def _markup(tokenizer: Any) -> dict[str, tuple[int, bool]]:
    """Text of each added token that is markup -> its id, and whether it is flagged special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {
        token.content: (number, bool(token.special))
        for number, token in added.items()
        if token.content.replace(WORD_MARK, "").strip()
    }


@lru_cache(maxsize=8)
def _unflagged(tokenizer: Any) -> frozenset[int]:
    return frozenset(number for number, special in _markup(tokenizer).values() if not special)


@lru_cache(maxsize=8)
def _plain_twin(tokenizer: Any) -> Any:
    """The tokenizer under the transformers one with all markup flagged special, and special tokens switched off."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    state = json.loads(backend.to_str())
    state.update(truncation=None, padding=None)
    for token in state["added_tokens"]:
        token["special"] = token["special"] or token["id"] in _unflagged(tokenizer)
    twin = type(backend).from_str(json.dumps(state))
    twin.encode_special_tokens = True
    return twin


@lru_cache(maxsize=8)
def begin_ids(tokenizer: Any) -> tuple[int, ...]:
    """Id of the token that the model's texts begin with; none where it has no such token of its own."""
    start = tuple(tokenizer("", add_special_tokens=True)["input_ids"])
    return start[:1] if start and start[0] == tokenizer.bos_token_id else ()


def encode_data(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` with nothing added and every markup token read as ordinary characters.

    Raises:
        InputError: it holds markup that this tokenizer (one without a fast implementation) cannot read as text.
    """
    twin = _plain_twin(tokenizer)
    if twin is not None:
        return list(twin.encode_batch_fast([text], add_special_tokens=False)[0].ids)  # no offsets: a quarter faster
    ids = list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    found = _unflagged(tokenizer).intersection(ids)
    if found:
        names = ", ".join(repr(name) for name, (number, _) in _markup(tokenizer).items() if number in found)
        raise InputError(f"the text holds {names}, which this model's tokenizer reads as markup")
    return ids


def leading_markup(tokenizer: Any, text: str) -> int | None:
    """Id of the markup token that `text` begins with, white space aside; None for any other text."""
    text = text.lstrip()
    names = [name for name in _markup(tokenizer) if text.startswith(name)]
    return _markup(tokenizer)[max(names, key=len)][0] if names else None

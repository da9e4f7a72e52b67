"""Cleaning what a model wrote, and the counted reasons for which a text is left out.

All rules come from the seeds: what a seed does, a variant may do. None knows a language; words are runs of letters and
digits, and each Chinese, Japanese or Korean character counts as one.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from afdc.task import Task, normalise_text
from afdc_pipeline.prompts import restore_breaks
from afdc_pipeline.rows import Seed

Style = Literal["continuation", "chat"]

REASONS = (
    "empty",
    "unfinished",
    "bad_encoding",
    "control_characters",
    "markup",
    "extra_lines",
    "echo_prompt",
    "too_short",
    "too_long",
    "wrong_script",
    "repetitive",
    "unlikely",
)

CJK = "\u2e80-\u2fff\u3005-\u3007\u3040-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
UNIT = re.compile(rf"[{CJK}]|[^\W{CJK}]+")
LIST_MARKER = re.compile(r"(?:[-*+•‣▪·–—]\s+|[(（]?\d{1,3}(?:[.)）]\s+|、\s*))")  # noqa: RUF001 # full-width forms
NEXT_ITEM = re.compile(rf"\n\s*{LIST_MARKER.pattern}")
MARKUP = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>|</?think>|```"
    r"|^\s*(?:system|user|assistant)\s*(?::|$)",
    re.IGNORECASE | re.MULTILINE,
)
MARKS = r"\**"  # of bold type
COLON = rf"{MARKS}\s*[:：]{MARKS}\s*"  # noqa: RUF001 # the full-width colon is what Chinese uses
WORD = rf"(?:[{CJK}]{{1,5}}|[^\W\d_{CJK}]{{1,12}})"
HEADING = rf"{MARKS}{WORD}{MARKS}\s*(?:[:：]{MARKS}\s+|：{MARKS}|(?<=[{CJK}])[:：]{MARKS}(?!/))"  # noqa: RUF001 # as above; no URL
QUOTES = {'"': '"', "'": "'", "“": "”", "«": "»", "「": "」", "『": "』", "„": "“", "*": "*"}
CHAR_RUN = re.compile(r"(\S)\1{23}")
MAX_PERIOD = 12
MIN_LOOP_UNITS = 8
FOREIGN_SHARE = 0.3
MIN_ECHO_CHARS = 16


@dataclass(frozen=True, slots=True)
class TextLimits:
    """What the seeds allow.

    Attributes:
        min_chars, max_chars, min_units, max_units: bounds on length; units are words and CJK characters.
        multiline: some seed has a line break.
        headed: some seed begins with a heading word.
        scripts: writing systems of the seeds' words; empty when they have no letters.
        echoes: folded texts that would only repeat the prompt: label names and descriptions.
        instruction: the folded instruction; a text that holds it is a copy. "" when it is too short to tell.
        allowed: reasons that do not apply because a seed would be rejected for them.
    """

    min_chars: int
    max_chars: int
    min_units: int
    max_units: int
    multiline: bool
    headed: bool
    scripts: frozenset[str]
    echoes: frozenset[str]
    instruction: str
    allowed: frozenset[str]

    @classmethod
    def from_seeds(cls, seeds: Sequence[Seed], task: Task) -> TextLimits:
        """From a quarter of the shortest seed to 2.5 times the longest, and some more for very short ones."""
        texts = [seed.text for seed in seeds]
        chars, units = [len(text) for text in texts], [count_units(text) for text in texts]
        prompt = [*task.names, *(label.description for label in task.classes)]
        instruction = _fold(task.instruction)
        is_telling = len(instruction) >= MIN_ECHO_CHARS and not any(instruction in _fold(text) for text in texts)
        return cls(
            min_chars=max(1, math.ceil(min(chars) / 4)),
            max_chars=math.ceil(2.5 * max(chars)) + 20,
            min_units=math.ceil(min(units) / 4),
            max_units=math.ceil(2.5 * max(units)) + 5,
            multiline=any(len(text.splitlines()) > 1 for text in texts),
            headed=any(map(is_headed, texts)),
            scripts=frozenset().union(*(scripts_of(text) for text in texts)),
            echoes=frozenset(filter(None, map(_fold, prompt))) - frozenset(map(_fold, texts)),
            instruction=instruction if is_telling else "",
            allowed=frozenset(name for name, test in CONTENT_CHECKS.items() if any(map(test, texts))),
        )


def clean_variant(
    raw: str, style: Style, *, labels: Sequence[str] = (), line_break: str = "", headed: bool = False
) -> str:
    """The first item of a completion without list marker, label lines, a heading word and surrounding quotes.

    Args:
        raw: what the model wrote.
        style: how it was asked; the first item of a chat answer ends where a second list item begins.
        labels: names that the model may have put before the text.
        line_break: what stands for a line break inside an item of a continuation.
        headed: some seed begins with a heading word (`is_headed`), so that it belongs to the text.
    """
    text = normalise_text(raw)
    text = restore_breaks(text.split("\n")[0], line_break) if style == "continuation" else _first_item(text)
    prefix = _prefix_pattern(tuple(labels), with_heading=style == "chat" and not headed)
    text = _label_line_after(tuple(labels)).sub("", text)
    for _ in range(3):  # a model may nest them: 1. "Label: text"
        before = text
        text = _unquote(prefix.sub("", LIST_MARKER.sub("", text, count=1) if LIST_MARKER.match(text) else text)).strip()
        if text == before:
            break
    return normalise_text(text)


def reject_reason(
    text: str,
    limits: TextLimits,
    *,
    finished: bool = True,
    mean_logprob: float | None = None,
    min_mean_logprob: float | None = None,
) -> str | None:
    """The first of `REASONS` that applies to a cleaned text, or None.

    Args:
        text: from `clean_variant`.
        limits: from the seeds.
        finished: the model ended the text itself, before the token limit.
        mean_logprob: nats a token; a text without one is not judged by it.
        min_mean_logprob: lowest that is kept; None keeps all.
    """
    if is_blank(text):
        return "empty"
    if not finished:
        return "unfinished"
    for name in ("bad_encoding", "control_characters", "markup"):
        if name not in limits.allowed and CONTENT_CHECKS[name](text):
            return name
    return _shape_reason(text, limits) or _worth_reason(text, limits, mean_logprob, min_mean_logprob)


def _shape_reason(text: str, limits: TextLimits) -> str | None:
    if not limits.multiline and len(text.splitlines()) > 1:
        return "extra_lines"
    if _is_echo(_fold(text), limits):
        return "echo_prompt"
    units = count_units(text)
    if len(text) < limits.min_chars or units < limits.min_units:
        return "too_short"
    if len(text) > limits.max_chars or units > limits.max_units:
        return "too_long"
    return None


def _worth_reason(text: str, limits: TextLimits, logprob: float | None, lowest: float | None) -> str | None:
    if _is_foreign(text, limits.scripts):
        return "wrong_script"
    if "repetitive" not in limits.allowed and is_repetitive(text):
        return "repetitive"
    if logprob is not None and lowest is not None and logprob < lowest:
        return "unlikely"
    return None


def is_blank(text: str) -> bool:
    """No character that shows: only spaces, controls and format characters."""
    return all(unicodedata.category(char)[0] in "CZ" for char in text)


def count_units(text: str) -> int:
    """Words, with each CJK character as one."""
    return sum(1 for _ in UNIT.finditer(text))


def is_repetitive(text: str) -> bool:
    """One character 24 times, or a loop of up to 12 units: three times, over 8 units and a third of the text."""
    units = UNIT.findall(text.casefold())
    needed = max(MIN_LOOP_UNITS, len(units) / 3)
    loops = (_longest_loop(units, period) >= max(needed, 3 * period) for period in range(1, MAX_PERIOD + 1))
    return bool(CHAR_RUN.search(text)) or any(loops)


def _longest_loop(units: Sequence[str], period: int) -> int:
    """Units covered by the longest stretch in which every unit equals the one `period` before it."""
    best = run = 0
    for one, other in zip(units, units[period:], strict=False):
        run = run + 1 if one == other else 0
        best = max(best, run)
    return best + period if best else 0


def scripts_of(text: str) -> Counter[str]:
    """Units by the writing system of their first letter, as Unicode names it: LATIN, CYRILLIC, CJK, HIRAGANA, ...

    Units and not letters are counted, so that a Latin product name does not outweigh the Chinese sentence around it.
    """
    units = UNIT.findall(unicodedata.normalize("NFKC", text))
    letters = (next(filter(str.isalpha, unit), None) for unit in units)
    return Counter(_script(letter) for letter in letters if letter)


@lru_cache(maxsize=1 << 16)
def _script(char: str) -> str:
    name = unicodedata.name(char, "UNKNOWN").split()[0]
    return "KANA" if name in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA") else name


def _is_foreign(text: str, scripts: frozenset[str]) -> bool:
    found = scripts_of(text)
    foreign = sum(n for script, n in found.items() if script not in scripts)
    return bool(scripts) and foreign > FOREIGN_SHARE * found.total()


def _is_echo(folded: str, limits: TextLimits) -> bool:
    return folded in limits.echoes or bool(limits.instruction and limits.instruction in folded)


def _fold(text: str) -> str:
    return " ".join(UNIT.findall(unicodedata.normalize("NFKC", text).casefold()))


def _has_controls(text: str) -> bool:
    return any(unicodedata.category(char) in ("Cc", "Co", "Cs") and char not in "\n\r\t" for char in text)


CONTENT_CHECKS: dict[str, Callable[[str], bool]] = {
    "bad_encoding": lambda text: "\ufffd" in text,
    "control_characters": _has_controls,
    "markup": lambda text: MARKUP.search(text) is not None,
    "repetitive": is_repetitive,
}


def _first_item(text: str) -> str:
    return NEXT_ITEM.split(text, maxsplit=1)[0] if LIST_MARKER.match(text) else text


@lru_cache(maxsize=256)
def _prefix_pattern(labels: tuple[str, ...], with_heading: bool) -> re.Pattern[str]:
    """`Label: name` on a line of its own, in any language, then `name:`, `Text:` or any `heading:` before the text."""
    names = _any_of(labels)
    heading = rf"|{HEADING}" if with_heading else ""
    line = rf"(?:{MARKS}{WORD}{COLON}(?:{names}){MARKS}\s*\n\s*)?"
    return re.compile(rf"\A{line}(?:{MARKS}(?:text|{names}){COLON}{heading})?", re.IGNORECASE)


@lru_cache(maxsize=256)
def _label_line_after(labels: tuple[str, ...]) -> re.Pattern[str]:
    """`Label: name` as the last line, behind the text."""
    return re.compile(rf"\n\s*{MARKS}{WORD}{COLON}(?:{_any_of(labels)}){MARKS}\s*\Z", re.IGNORECASE)


def _any_of(labels: tuple[str, ...]) -> str:
    return "|".join(re.escape(name) for name in sorted(labels, key=len, reverse=True)) or r"(?!)"


def is_headed(text: str) -> bool:
    """The text begins with one short word and a colon, as in "Question: where is it?"."""
    return re.match(HEADING, text) is not None


def _unquote(text: str) -> str:
    closing = QUOTES.get(text[:1])
    if closing is None or len(text) < 3 or not text.endswith(closing):
        return text
    inner = text[1:-1]
    return text if text[0] in inner or closing in inner else inner

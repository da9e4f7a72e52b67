"""The wording that asks a model for a new text of a label: a list to continue, or a chat.

docs/decisions/0002-continuation-prompts.md says what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from afdc.files import canonical_json, sha256_bytes
from afdc.prompting import Message
from afdc.task import Label, Task, normalise_text

BREAK_MARKS = ("\\n", "<br>", "\u23ce")
FENCES = ("---", "***", "=====", "#####")
CHAT_SYSTEM = "You write realistic texts for a data set. You answer with one text and nothing else."


def continuation_prompt(task: Task, label: Label | None, texts: Sequence[str]) -> str:
    """A list under the label's name that stops where the next item begins. Markup only, no words of any language.

    Without a label (an open task) the list stands under the instruction.
    """
    mark = choose_break_mark(texts)
    items = "".join(f"- {flatten_text(text, mark)}\n" for text in texts)
    heading = f"{label_heading(label)}:\n" if label else ""
    return f"{normalise_text(task.instruction)}\n\n{heading}{items}-"


def chat_prompt(task: Task, label: Label | None, texts: Sequence[str]) -> tuple[Message, ...]:
    """Ask for one new text, of the label if there is one. The examples set language, length and form."""
    fence = _unused(FENCES, texts)
    examples = f"\n{fence}\n".join(texts)
    what = f"Label: {label_heading(label)}" if label else "The texts are what the task is done on, without its answers."
    request = (
        f"Task of the data set: {normalise_text(task.instruction)}\n"
        f"{what}\n\n"
        f"Texts{' with this label' if label else ''}, separated by {fence}\n\n{examples}\n\n"
        f"Write one new text{' that clearly has this label' if label else ''}. "
        "Choose another subject and other words than the texts above; "
        "keep their language, their length and their style. Answer with the text alone."
    )
    return (Message("system", CHAT_SYSTEM), Message("user", request))


def choose_break_mark(texts: Sequence[str]) -> str:
    """What stands for a line break inside a list item; "" when no text has one.

    An item must stay on one line: small models keep to a list of lines far better than to fenced blocks.
    """
    if all(len(text.splitlines()) <= 1 for text in texts):
        return ""
    return _unused(BREAK_MARKS, texts)


def flatten_text(text: str, mark: str) -> str:
    """The text on one line."""
    return mark.join(text.splitlines()) if mark else text


def restore_breaks(text: str, mark: str) -> str:
    """Inverse of `flatten_text`, up to spaces at the line ends."""
    return "\n".join(line.strip() for line in text.split(mark)) if mark else text


def prompt_hash(prompt: str | tuple[Message, ...]) -> str:
    """16 hex digits of SHA-256 over the prompt."""
    value = prompt if isinstance(prompt, str) else [[message.role, message.content] for message in prompt]
    return sha256_bytes(canonical_json(value))[:16]


def label_heading(label: Label) -> str:
    """The label's name, with what it means."""
    return f"{label.name} ({normalise_text(label.description)})" if label.description else label.name


def _unused(marks: Sequence[str], texts: Sequence[str]) -> str:
    """The first mark that no text contains, or else the last one repeated until none does."""
    longest = max(map(len, texts), default=0)
    more = (marks[-1] * n for n in range(2, longest + 2))
    return next(mark for mark in (*marks, *more) if not any(mark in text for text in texts))

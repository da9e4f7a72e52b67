"""Finding the label that somebody meant: exact names, other spellings of them, and the nearest guess."""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Sequence

from afdc.task import Task, normalise_text

LISTED_NAMES = 20
SHOWN_CHARS = 80


def fold_name(name: str) -> str:
    """A form that is equal for names differing only in letter case or compatibility characters (NFKC)."""
    return unicodedata.normalize("NFKC", normalise_text(name).casefold())


class LabelIndex:
    """Looks labels of one task up by what a file says."""

    def __init__(self, task: Task) -> None:
        self.names = task.names
        folded = Counter(fold_name(name) for name in task.names)
        self._folded = {fold_name(name): name for name in task.names}
        self._table = {fold: name for fold, name in self._folded.items() if folded[fold] == 1}
        self._table |= {normalise_text(name): name for name in task.names}

    def find(self, name: str) -> str | None:
        """The task's own spelling of `name`; None when it names no label, or more than one."""
        return self._table.get(normalise_text(name)) or self._table.get(fold_name(name))

    def unknown(self, name: str) -> tuple[str, str]:
        """Message and remedy for a name that is no label."""
        close = difflib.get_close_matches(fold_name(name)[: 2 * SHOWN_CHARS], self._folded, n=1)
        guess = f" (did you mean {self._folded[close[0]]!r}?)" if close else ""
        return f"unknown label {name[:SHOWN_CHARS]!r}{guess}", f"The labels are: {list_names(self.names)}"


class FreeAnswers:
    """Stands for the labels of an open task: whatever an example says is its answer."""

    names: tuple[str, ...] = ()

    def find(self, name: str) -> str | None:
        """The answer in its normal form."""
        return normalise_text(name) or None

    def unknown(self, name: str) -> tuple[str, str]:
        """Message and remedy for an answer that is none."""
        return "the answer is empty", "Write the answer that the text should get"


def label_index(task: Task) -> LabelIndex | FreeAnswers:
    """What reads the labels of examples of this task."""
    return FreeAnswers() if task.is_open else LabelIndex(task)


def list_names(names: Sequence[str]) -> str:
    """Names for a message, the first 20 of them."""
    more = f" and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else ""
    return ", ".join(name[:SHOWN_CHARS] for name in names[:LISTED_NAMES]) + more

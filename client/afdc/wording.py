"""Texts and times for a person's eye, whoever shows them."""

from __future__ import annotations

import unicodedata


def one_line(text: str, limit: int = 100) -> str:
    """`text` on one line, cut to `limit` characters, with control characters made harmless: it may come from anyone."""
    line = " ".join(text.split())
    line = "".join("\ufffd" if unicodedata.category(char) in {"Cc", "Cf", "Cs"} else char for char in line)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def duration(seconds: float) -> str:
    """75.2 -> "1 min 15 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"

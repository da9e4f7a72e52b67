"""Texts and times for a person's eye, whoever shows them."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # help is shown without pydantic
    from afdc.result import Evaluation


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


def loss(evaluation: Evaluation | None) -> str:
    """A log loss in nats, what the gate compares: "0.241"; "" where there is none."""
    return "" if evaluation is None or evaluation.log_loss is None else f"{evaluation.log_loss:.3f}"

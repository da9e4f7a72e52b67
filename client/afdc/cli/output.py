"""Where output goes: data on stdout, everything else on stderr."""

from __future__ import annotations

import importlib
import json
import sys
import unicodedata
from typing import Any

from rich.console import Console

from afdc.errors import UsageError


def data_console() -> Console:
    """stdout. Colours and bars only on a terminal without NO_COLOR; piped output keeps its line length."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=120)


class _MessageConsole(Console):
    def on_broken_pipe(self) -> None:
        """Nobody reads the messages any more: the work goes on without them, where rich would end the process."""
        self.quiet = True


def message_console() -> Console:
    """stderr."""
    return _MessageConsole(stderr=True, highlight=False, markup=False)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def visible(text: str, limit: int = 100) -> str:
    """`text` on one line, cut to `limit` characters, with control characters made harmless: it may come from anyone."""
    line = " ".join(text.split())
    line = "".join("\ufffd" if unicodedata.category(char) in {"Cc", "Cf", "Cs"} else char for char in line)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def load_server(module: str) -> Any:
    """Import a module of the server package, which is an extra.

    Raises:
        UsageError: it, or something that it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if str(exc.name).startswith("afdc"):
            raise  # a part of this very wheel: no extra would bring it
        raise UsageError(
            f"this command needs the Python package {exc.name!r}, which is not installed",
            remedy='Install it with: pip install "afdc[cpu]", or "afdc[gpu]" for an NVIDIA GPU',
        ) from exc


def duration(seconds: float) -> str:
    """75.2 -> "1 min 15 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"

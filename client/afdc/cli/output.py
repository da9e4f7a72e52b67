"""Where output goes: data on stdout, everything else on stderr."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, BinaryIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from afdc import wording
from afdc.cli.failures import ReaderGoneError
from afdc.errors import UsageError

NAME_WIDTH = 8  # the least that a name is shortened to
OBEYED = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What JSON leaves as it is: C1 controls, those that turn the direction of writing, halves of surrogate pairs."""
visible = wording.one_line


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


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON as people read it; what a terminal would obey, and JSON itself allows, is escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(to_json(value, indent=2) + "\n")
    sys.stdout.flush()


def copy_to_stdout(stream: BinaryIO) -> None:
    """All bytes of a file.

    Raises:
        ReaderGoneError: whoever reads stdout went away.
    """
    try:
        sys.stdout.flush()
        shutil.copyfileobj(stream, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except BrokenPipeError as exc:
        raise ReaderGoneError from exc


def print_table(console: Console, rows: Sequence[Mapping[str, str]], name: str) -> None:
    """A table on a terminal, where the column `name` gives way first; else lines of values with tabs in between."""
    if not console.is_terminal:
        for row in rows:
            sys.stdout.write("\t".join(row.values()) + "\n")
        return
    table = Table(box=None, header_style="bold", pad_edge=False, expand=True)
    columns = _fitting(rows, name, console.width)
    for column, width in columns.items():
        if column == name:
            table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=1)
        else:
            table.add_column(column, no_wrap=True, width=width)
    for row in rows:
        table.add_row(*(Text(row[column]) for column in columns))
    console.print(table)


def _fitting(rows: Sequence[Mapping[str, str]], name: str, width: int) -> dict[str, int]:
    """Columns with their widths: from the last one on those fall out that leave the first, an id, too little room."""
    columns = list(rows[0]) if rows else []
    widths = {column: max(cell_len(column), *(cell_len(row[column]) for row in rows)) for column in columns}
    if name in widths:
        widths[name] = min(widths[name], NAME_WIDTH)
    for column in [*(column for column in reversed(columns[1:]) if column != name), name]:
        if sum(widths.values()) + len(widths) - 1 > width:
            widths.pop(column, None)
    return widths


def local_time(at: datetime | None) -> str:
    """To the minute, in the time zone of this machine; "" for None."""
    return "" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M")


def age(at: datetime, now: datetime | None = None) -> str:
    """How long ago: "40 s", "3 min", "5 h" or "12 d"."""
    seconds = max(((now or datetime.now(UTC)) - at).total_seconds(), 0.0)
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds // unit:.0f} {name}"
    return f"{seconds // 86400:,.0f} d"


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
    """75.2 -> "1 min 15 s"; below a minute with a tenth."""
    return f"{seconds:.1f} s" if seconds < 60 else wording.duration(seconds)

"""What the processes of this package share: a job file on the command line, and a parent to end with."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from afdc.task import Model
from afdc.training import PARENT_VARIABLE

JobT = TypeVar("JobT", bound=Model)


def read_job(arguments: Sequence[str], kind: type[JobT], module: str, what: str) -> JobT | None:
    """The job of the one file named; None, and the reason on stderr, where there is none."""
    if len(arguments) != 1:
        print(f"usage: python -m {module} job.json", file=sys.stderr)
        return None
    try:
        return kind.model_validate_json(Path(arguments[0]).read_bytes())
    except (OSError, ValidationError) as exc:
        print(f"{arguments[0]} is not {what}: {exc}", file=sys.stderr)
        return None


def watch_parent() -> None:
    """End this process when the one that the environment names ends, even by kill -9: nobody would read the result."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent:
        end_with(int(parent))


def end_with(parent: int) -> None:
    """End this process, from a thread, when the process of that id ends."""
    threading.Thread(target=_wait_for_end, args=(parent,), daemon=True).start()


def _wait_for_end(parent: int) -> None:
    import select

    try:
        handle = os.pidfd_open(parent)
        select.select([handle], [], [])
    except ProcessLookupError:
        pass
    os._exit(143)

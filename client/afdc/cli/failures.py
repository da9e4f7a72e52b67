"""What a person sees when something goes wrong: one message and an exit code, and a traceback only on request.

| exit | meaning |
|---|---|
| 0 | done |
| 2 | usage: a flag, a setting or a file that was named cannot be used |
| 5 | wrong input, or a conflict with what is there |
| 6 | the job failed, or an error that nobody foresaw |
| 130 | interrupted; the same command resumes |
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from afdc.errors import AfdcError

UNFORESEEN = 6
INTERRUPTED = 130


def guard(call: Callable[[], None]) -> int:
    """Run `call` and turn whatever it raises into a message on stderr and an exit code."""
    try:
        call()
    except SystemExit as exc:
        if exc.code == INTERRUPTED:  # typer turns a Ctrl-C into this, without a word
            _tell_interrupted()
        return exc.code if isinstance(exc.code, int) else 0 if exc.code is None else UNFORESEEN
    except AfdcError as exc:
        _tell(str(exc), exc)
        return exc.exit_code
    except KeyboardInterrupt:
        _tell_interrupted()
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return 0
    except Exception as exc:  # the last line of defence: an error that nobody foresaw still gets a message and a log
        _tell(f"unexpected error: {type(exc).__name__}: {exc}. The details are in {_write_log()}", exc)
        return UNFORESEEN
    return 0


def _tell(message: str, exc: BaseException) -> None:
    if os.environ.get("AFDC_DEBUG"):
        traceback.print_exception(exc)
    print(f"afdc: {message}", file=sys.stderr)


def _tell_interrupted() -> None:
    print("\nafdc: interrupted; run the same command again to go on", file=sys.stderr)


def _write_log() -> Path:
    """Save the traceback of the error being handled under the user's cache folder."""
    base = os.environ.get("AFDC_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "afdc")
    path = Path(base).expanduser() / "logs" / f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError:
        traceback.print_exc()
        return Path(os.devnull)
    return path


def _silence_stdout() -> None:
    """The reader of a pipe went away (`afdc … | head`): keep the interpreter from complaining about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

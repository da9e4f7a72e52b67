"""What a person sees when something goes wrong: one message and an exit code, and a traceback only on request.

| exit | meaning |
|---|---|
| 0 | done |
| 2 | usage: a flag, a setting or a file that was named cannot be used |
| 3 | the server knows no such key, or the key may not do this |
| 4 | the server has no such object |
| 5 | wrong input, or a conflict with what is there |
| 6 | the job failed, or an error that nobody foresaw |
| 7 | the job was cancelled |
| 8 | the server does not answer, or cannot now |
| 130 | interrupted; the same command resumes |
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, cast

from afdc.errors import AfdcError

UNFORESEEN = 6
INTERRUPTED = 130


class ReaderGoneError(Exception):
    """Whoever read stdout went away (`afdc … | head`): no fault of this program, and nothing is left to do."""


class _Stdout:
    """stdout that tells a reader who went away apart from every other broken pipe, such as that of a child process."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError as exc:
            raise ReaderGoneError from exc

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError as exc:
            raise ReaderGoneError from exc


def guard(call: Callable[[], None]) -> int:
    """Run `call` and turn whatever it raises into a message on stderr and an exit code."""
    stream = sys.stdout
    sys.stdout = cast(TextIO, _Stdout(stream))
    try:
        code = _guarded(call)
        sys.stdout.flush()
    except ReaderGoneError:
        _silence(stream)
        return 0
    finally:
        sys.stdout = stream
    return code


def _guarded(call: Callable[[], None]) -> int:
    try:
        call()
    except SystemExit as exc:
        if isinstance(exc.__context__, BrokenPipeError):  # typer turns every broken pipe into this, without a word
            return _tell_unforeseen(exc.__context__)
        if exc.code == INTERRUPTED:  # and so a Ctrl-C
            _tell_interrupted()
        return exc.code if isinstance(exc.code, int) else 0 if exc.code is None else UNFORESEEN
    except AfdcError as exc:
        _tell(str(exc), exc)
        return exc.exit_code
    except KeyboardInterrupt:
        _tell_interrupted()
        return INTERRUPTED
    except ReaderGoneError:
        raise
    except Exception as exc:  # the last line of defence: an error that nobody foresaw still gets a message and a log
        return _tell_unforeseen(exc)
    return 0


def _tell_unforeseen(exc: Exception) -> int:
    _tell(f"unexpected error: {type(exc).__name__}: {exc}. The details are in {_write_log(exc)}", exc)
    return UNFORESEEN


def _tell(message: str, exc: BaseException) -> None:
    if os.environ.get("AFDC_DEBUG"):
        traceback.print_exception(exc)
    print(f"afdc: {message}", file=sys.stderr)


def _tell_interrupted() -> None:
    print("\nafdc: interrupted; run the same command again to go on", file=sys.stderr)


def _write_log(exc: Exception) -> Path:
    """Save the traceback under the user's cache folder."""
    from afdc.files import cache_root  # only a failure needs it

    path = cache_root() / "logs" / f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(traceback.format_exception(exc)), encoding="utf-8")
    except OSError:
        traceback.print_exception(exc)
        return Path(os.devnull)
    return path


def _silence(stream: TextIO) -> None:
    """Keep the interpreter from complaining at exit about what it could not write."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

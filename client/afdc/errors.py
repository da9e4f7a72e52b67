"""Every error that AFDC raises on purpose.

AfdcError
├── UsageError            exit 2   a flag, a setting or a file that the caller named cannot be used
├── InputError            exit 5   the data in a file is wrong: says file, line and remedy
├── ConflictError         exit 5   the output folder holds another job, or another process holds the lease
├── ModelError            exit 5   the model cannot be found, loaded or used for this task
├── AdapterError          exit 6   an adapter folder fails verification: nothing was loaded from it
├── EngineError           exit 6   the engine cannot answer
│   ├── EngineDiedError            the engine process ended or hung; the supervisor recreates it
│   └── RequestRejectedError       this one request can never succeed; the others go on
├── TrainerError          exit 6   a training run ended without an adapter
├── StorageError          exit 6   disk full, read-only or torn file
└── InterruptedRunError   exit 130 stopped by the user; everything finished so far is kept
"""

from __future__ import annotations


class AfdcError(Exception):
    """Base of all errors raised on purpose: a message that says what, where and what to do.

    Attributes:
        exit_code: what the command line ends with.
        code: stable machine-readable name, used in JSON output and problem details.
    """

    exit_code = 6
    code = "error"

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(f"{message}. {remedy}" if remedy else message)
        self.message = message
        self.remedy = remedy

    def add_place(self, place: str) -> None:
        """Say where it was, in front of the message."""
        self.message = f"{place}: {self.message}"
        self.args = (f"{place}: {self.args[0]}", *self.args[1:])


class UsageError(AfdcError):
    exit_code = 2
    code = "usage"


class InputError(AfdcError):
    """Wrong data; `path` and 1-based `line` say where, when they are known."""

    exit_code = 5
    code = "invalid_input"

    def __init__(self, message: str, *, path: str = "", line: int | None = None, remedy: str = "") -> None:
        where = f"{path}:{line}: " if path and line is not None else f"{path}: " if path else ""
        super().__init__(where + message, remedy=remedy)
        self.path = path
        self.line = line


class ConflictError(AfdcError):
    exit_code = 5
    code = "conflict"


class ModelError(AfdcError):
    exit_code = 5
    code = "model"


class AdapterError(AfdcError):
    code = "adapter"


class EngineError(AfdcError):
    code = "engine"


class EngineDiedError(EngineError):
    code = "engine_died"


class RequestRejectedError(EngineError):
    code = "request_rejected"


class TrainerError(AfdcError):
    code = "trainer"


class StorageError(AfdcError):
    code = "storage"


class InterruptedRunError(AfdcError):
    exit_code = 130
    code = "interrupted"

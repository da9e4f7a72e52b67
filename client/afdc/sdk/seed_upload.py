"""From what a user has (a file, examples in memory, a task) to the request that makes a seed set of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from afdc.errors import InputError
from afdc.files import user_path
from afdc.inputs import read_task
from afdc.records import SUFFIXES, Problem, open_input, read_records, text_records, type_name
from afdc.sdk.core import IDEMPOTENCY_KEY, Call, Raw, Upload, checked, encode_params, json_bytes, post
from afdc.task import Example, Task
from afdc.wire.seeds import OnInvalid, SeedKind, SeedSet, SeedSetCreate

T = TypeVar("T")

PIECE_BYTES = 1 << 18
JSON_EXAMPLES = 1000  # servers take larger bodies as lines than as one JSON value
JSON_LINES = "application/jsonl"
SEED_ID = re.compile(r"seed_[A-Za-z0-9-]+")

ExampleLike: TypeAlias = Example | Mapping[str, Any] | tuple[str, str] | str
Examples: TypeAlias = str | Path | Iterable[ExampleLike]
"""A JSONL, CSV or (texts without labels) plain text file, or examples: dicts, `Example`, (text, label), or texts."""
SeedSource: TypeAlias = SeedSet | Examples
"""Also the id of a seed set, or the set itself."""
TaskLike: TypeAlias = Task | Mapping[str, Any] | str | Path | None
"""A task, its JSON as a dict, or the path of a task file. None: it is inferred from the examples."""


@dataclass(frozen=True)
class SeedRequest:
    """What is said about the examples beside themselves."""

    task: Task | None = None
    kind: SeedKind = "seeds"
    holdout: tuple[ExampleLike, ...] = ()
    on_invalid: OnInvalid = "reject"
    name: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def fits_query(self) -> bool:
        """Whether a file can be streamed: a query has no room for open tasks, descriptions, holdout and metadata."""
        plain = self.task is None or (
            not self.task.is_open and not any(label.description for label in self.task.classes)
        )
        return plain and not self.holdout and not self.metadata

    def query(self) -> tuple[tuple[str, str], ...]:
        """What goes beside a streamed file."""
        instruction = self.task.instruction if self.task else None
        labels = self.task.names if self.task else ()
        return encode_params(
            {
                "kind": self.kind,
                "instruction": instruction,
                "label": labels,
                "on_invalid": self.on_invalid,
                "name": self.name or None,
            }
        )


def read_task_like(task: TaskLike) -> Task | None:
    """A task from whatever stands for one.

    Raises:
        InputError: a file or a dict that holds no task.
    """
    if task is None or isinstance(task, Task):
        return task
    if isinstance(task, str | Path):
        return read_task(user_path(task))
    return checked(Task, **task)


def is_stored(source: object) -> bool:
    """Whether this is a seed set, or the id of one; a string that names a file is its path."""
    if isinstance(source, SeedSet):
        return True
    return isinstance(source, str) and SEED_ID.fullmatch(source) is not None and not Path(source).exists()


def seed_call(
    parse: Callable[[Raw], T], path: str, source: Examples, request: SeedRequest, key: str | None = None
) -> Call[T]:
    """The request for `path`: a file goes as it is and many examples as lines, where the query can say the rest.

    Args:
        key: Idempotency-Key; None where nothing is stored.

    Raises:
        InputError: a file that cannot be read, or an example that is none.
    """
    if isinstance(source, str | Path):
        file = user_path(source)
        named = replace(request, name=request.name or file.name)
        if request.fits_query:
            return _upload(parse, path, *_open_upload(file), named, key)
        return _as_json(parse, path, _file_examples(file, request.kind), named, key)
    examples = [_example(item, place) for place, item in enumerate(source, 1)]
    if request.fits_query and len(examples) > JSON_EXAMPLES:
        lines = [json_bytes(example) + b"\n" for example in examples]
        return _upload(parse, path, JSON_LINES, Upload(lambda: _packed(lines), sum(map(len, lines))), request, key)
    return _as_json(parse, path, examples, request, key)


def _upload(
    parse: Callable[[Raw], T], path: str, kind: str, upload: Upload, request: SeedRequest, key: str | None
) -> Call[T]:
    headers = {"Content-Type": kind} | ({IDEMPOTENCY_KEY: key} if key else {})
    return Call("POST", path, parse, request.query(), upload, headers, idempotent=True)


def _open_upload(file: Path) -> tuple[str, Upload]:
    """Content type and body. Plain text becomes JSON lines on the way."""
    with open_input(file) as stream:
        head = stream.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")
        size = stream.seek(0, 2)
    suffix = SUFFIXES.get(file.suffix.lower(), "jsonl" if head[:1] in (b"{", b"[") else "csv")
    if suffix == "text":
        return JSON_LINES, Upload(lambda: _packed(_text_lines(file)))
    return ("text/csv" if suffix == "csv" else JSON_LINES), Upload(lambda: _pieces(file), size)


def _pieces(file: Path) -> Iterator[bytes]:
    with open_input(file) as stream:
        while piece := stream.read(PIECE_BYTES):
            yield piece


def _text_lines(file: Path) -> Iterator[bytes]:
    with open_input(file) as stream:
        for item in text_records(stream):
            if isinstance(item, Problem):
                raise InputError(item.message, path=str(file), line=item.line, remedy=item.remedy)
            yield json_bytes({"text": item.fields["text"].rstrip("\r\n")}) + b"\n"


def _packed(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines in pieces that are worth a system call."""
    piece = bytearray()
    for line in lines:
        piece += line
        if len(piece) >= PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


def _as_json(
    parse: Callable[[Raw], T], path: str, examples: list[dict[str, Any]], request: SeedRequest, key: str | None
) -> Call[T]:
    body = checked(
        SeedSetCreate,
        task=request.task,
        examples=examples,
        holdout=[_example(item, place) for place, item in enumerate(request.holdout, 1)],
        kind=request.kind,
        on_invalid=request.on_invalid,
        name=request.name,
        metadata=dict(request.metadata),
    )
    return post(parse, path, body, key=key, repeatable=True)


def _file_examples(file: Path, kind: SeedKind) -> list[dict[str, Any]]:
    found = []
    for record in read_records(file, plain_text=kind == "unlabeled"):
        if isinstance(record, Problem):
            raise InputError(record.message, path=str(file), line=record.line, remedy=record.remedy)
        found.append(record.fields)
    return found


def _example(item: ExampleLike, place: int) -> dict[str, Any]:
    if isinstance(item, str):
        return {"text": item}
    if isinstance(item, Example):
        return item.model_dump(exclude_none=True, exclude_defaults=True)
    if isinstance(item, Mapping):
        return dict(item)
    if isinstance(item, tuple) and len(item) == 2:
        return {"text": item[0], "label": item[1]}
    remedy = 'Give {"text": ..., "label": ...}, (text, label) or a text'
    raise InputError(f"example {place} is {type_name(item)}", remedy=remedy)

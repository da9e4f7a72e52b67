"""A data set in the formats that other programs read, made while it is sent."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from afdc.errors import UsageError
from afdc.prompting import system_prompt
from afdc.task import normalise_text
from afdc.wire.datasets import ExportFormat, Split
from afdc_server.artifacts import ArtifactStore
from afdc_server.datasets.labelstudio import task_of_row
from afdc_server.datasets.reading import to_rows
from afdc_server.datasets.sinks import parquet_pieces, zip_pieces
from afdc_server.datasets.store import StoredDataset
from afdc_server.datasets.value import row_values

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
TRAINING = ("messages", "prompt_completion", "alpaca")
JSONL = "application/jsonl"


@dataclass(frozen=True)
class Export:
    """A file to send. `pieces` raise StorageError where the data set cannot be read."""

    name: str
    media_type: str
    pieces: Iterator[bytes]


@dataclass(frozen=True)
class _Format:
    suffix: str
    media_type: str
    write: Callable[[StoredDataset, ArtifactStore, Split], Iterator[bytes]]


def export_dataset(dataset: StoredDataset, artifacts: ArtifactStore, format: ExportFormat, split: Split) -> Export:
    """Start to write a split in a format. Nothing is read before the first piece is asked for.

    Raises:
        UsageError: a format for training, of rows that were left out.
    """
    if split == "rejected" and format in TRAINING:
        raise UsageError(f"rows that were left out have no form for {format}", remedy="Use split=default, or jsonl")
    chosen = FORMATS[format]
    name = dataset.wire.id + ("-rejected" if split == "rejected" and format != "hf" else "")
    return Export(f"{name}.{chosen.suffix}", chosen.media_type, chosen.write(dataset, artifacts, split))


def csv_cell(value: Any) -> str:
    """A value as CSV text: lists as JSON, null as nothing, and no text that a spreadsheet takes for a formula.

    A text that begins with = + - @, tab or carriage return gets an apostrophe before it (OWASP, CSV injection).
    """
    if value is None:
        return ""
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        return f"'{value}" if value.startswith(FORMULA_STARTS) else value
    return repr(value)


def _write_jsonl(dataset: StoredDataset, artifacts: ArtifactStore, split: Split) -> Iterator[bytes]:
    for _, batch in dataset.rows(artifacts, split).batches():
        yield _lines(to_rows(batch))


def _write_csv(dataset: StoredDataset, artifacts: ArtifactStore, split: Split) -> Iterator[bytes]:
    files = dataset.rows(artifacts, split)
    names = files.schema().names
    yield _csv_lines([names])
    for _, batch in files.batches():
        yield _csv_lines([csv_cell(row[name]) for name in names] for row in to_rows(batch))


def _csv_lines(rows: Iterable[list[str]]) -> bytes:
    """RFC 4180. Every cell is quoted, so that none opens another one under a spreadsheet's own separator."""
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()


def _write_parquet(dataset: StoredDataset, artifacts: ArtifactStore, split: Split) -> Iterator[bytes]:
    files = dataset.rows(artifacts, split)
    yield from parquet_pieces(files.schema(), (batch for _, batch in files.batches()))


def _write_zip(dataset: StoredDataset, artifacts: ArtifactStore, _split: Split) -> Iterator[bytes]:
    return zip_pieces(artifacts, dataset.location, dataset.wire.files, dataset.wire.id)


def _writer_of(folder: str) -> Callable[[StoredDataset, ArtifactStore, Split], Iterator[bytes]]:
    """JSON lines of a folder that holds the rows in the wanted shape already."""

    def write(dataset: StoredDataset, artifacts: ArtifactStore, _split: Split) -> Iterator[bytes]:
        for _, batch in dataset.folder(artifacts, folder).batches():
            yield _lines(to_rows(batch))

    return write


def _write_alpaca(dataset: StoredDataset, artifacts: ArtifactStore, split: Split) -> Iterator[bytes]:
    instruction = system_prompt(dataset.task)
    answer = "answer" if dataset.task.is_open else "label"
    for _, batch in dataset.rows(artifacts, split).batches(["text", answer]):
        yield _lines(
            {"instruction": instruction, "input": normalise_text(row["text"]), "output": row[answer]}
            for row in batch.to_pylist()
        )


def _write_labelstudio(dataset: StoredDataset, artifacts: ArtifactStore, split: Split) -> Iterator[bytes]:
    """A JSON list, as Label Studio imports it."""
    before = b"[\n"
    for _, batch in dataset.rows(artifacts, split).batches():
        parts = [json.dumps(one, ensure_ascii=False).encode() for one in _tasks(batch, dataset, split)]
        yield before + b",\n".join(parts)
        before = b",\n"
    yield b"[]\n" if before == b"[\n" else b"\n]\n"


def _tasks(batch: pa.RecordBatch, dataset: StoredDataset, split: Split) -> Iterator[dict[str, Any]]:
    for row, value in zip(to_rows(batch), row_values(batch), strict=True):
        yield task_of_row(row, dataset.wire, split, float(value))


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


FORMATS: Mapping[ExportFormat, _Format] = {
    "jsonl": _Format("jsonl", JSONL, _write_jsonl),
    "parquet": _Format("parquet", "application/vnd.apache.parquet", _write_parquet),
    "csv": _Format("csv", "text/csv; charset=utf-8", _write_csv),
    "hf": _Format("zip", "application/zip", _write_zip),
    "messages": _Format("messages.jsonl", JSONL, _writer_of("messages")),
    "prompt_completion": _Format("prompt_completion.jsonl", JSONL, _writer_of("prompt_completion")),
    "alpaca": _Format("alpaca.jsonl", JSONL, _write_alpaca),
    "labelstudio": _Format("labelstudio.json", "application/json", _write_labelstudio),
}

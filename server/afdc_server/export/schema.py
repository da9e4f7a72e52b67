"""The columns of the exported data set, and the three shapes in which each row is written.

The Arrow types are fixed here and never inferred: an empty column, or one that happens to hold only nulls, has the same
type in every file of every run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from afdc.prompting import system_prompt
from afdc.task import Task, normalise_text

Row = Mapping[str, Any]

AUDIT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("seed_ids", pa.list_(pa.string())),
        pa.field("parent", pa.string()),
        pa.field("intended", pa.string()),
        pa.field("augment_round", pa.int32()),
        pa.field("accepted_round", pa.int32()),
        pa.field("generator", pa.string()),
        pa.field("prompt_hash", pa.string()),
        pa.field("sampling", pa.string()),
        pa.field("scorer", pa.string()),
        pa.field("distribution", pa.list_(pa.float64())),
        pa.field("confidence", pa.float64()),
        pa.field("margin", pa.float64()),
        pa.field("entropy", pa.float64()),
        pa.field("disagreement", pa.float64()),
        pa.field("label_history", pa.list_(pa.string())),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("cluster", pa.string()),
        pa.field("weight", pa.float64()),
        pa.field("review_state", pa.string()),
    ]
)
AUDIT_COLUMNS: tuple[str, ...] = tuple(AUDIT_SCHEMA.names)
LATER_COLUMNS = ("disagreement",)
"""Columns that the data sets of earlier versions lack; a review of one makes the next version of it with nulls."""

_RENAMED = {"label": "answer", "label_history": "answer_history"}
_OF_LABELS = ("intended", "distribution")
_OF_ANSWERS = [pa.field("agreement", pa.float64()), pa.field("mean_logprob", pa.float64())]
OPEN_SCHEMA = pa.schema(
    [field.with_name(_RENAMED.get(field.name, field.name)) for field in AUDIT_SCHEMA if field.name not in _OF_LABELS]
    + _OF_ANSWERS
)
OPEN_COLUMNS: tuple[str, ...] = tuple(OPEN_SCHEMA.names)

_TURNS = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))

MESSAGES_SCHEMA = pa.schema([("messages", _TURNS), ("weight", pa.float64())])

# The label is `class_label` here: TRL reads prompt + completion + label as an unpaired preference.
PROMPT_COMPLETION_SCHEMA = pa.schema([("prompt", _TURNS), ("completion", _TURNS), ("class_label", pa.string())])
OPEN_PAIRS_SCHEMA = pa.schema([("prompt", _TURNS), ("completion", _TURNS)])


@dataclass(frozen=True)
class Shape:
    """One configuration of the data set: its folder, its columns, and how a row becomes one of its rows."""

    name: str
    folder: str
    schema: pa.Schema
    convert: Callable[[Row], dict[str, Any]]


def audit_row(row: Row) -> dict[str, Any]:
    """All audit columns in their order. Raises KeyError for a missing one: null has to be said."""
    return {name: _field(row, name) for name in AUDIT_COLUMNS}


def open_row(row: Row) -> dict[str, Any]:
    """All columns of a row of an open task: its answer stands where a label would, with its two measures."""
    source = {new: old for old, new in _RENAMED.items()}
    return {name: _field(row, source.get(name, name)) for name in OPEN_COLUMNS}


def _field(row: Row, name: str) -> Any:
    return row.get(name) if name in LATER_COLUMNS else row[name]


def audit_shape(task: Task, name: str = "default", folder: str = "data") -> Shape:
    """The shape with every row's whole story."""
    return Shape(name, folder, OPEN_SCHEMA, open_row) if task.is_open else Shape(name, folder, AUDIT_SCHEMA, audit_row)


def rejected_shape(task: Task) -> Shape:
    """The shape of rows that were left out."""
    return audit_shape(task, "rejected", "rejected")


def training_shapes(task: Task) -> tuple[Shape, ...]:
    """The shapes of accepted rows. The turns are those that AFDC itself trains on: system, user, assistant."""
    system = {"role": "system", "content": system_prompt(task)}

    def prompt(row: Row) -> list[dict[str, str]]:
        return [system, {"role": "user", "content": normalise_text(row["text"])}]

    def answer(row: Row) -> dict[str, str]:
        return {"role": "assistant", "content": row["label"]}

    def messages(row: Row) -> dict[str, Any]:
        return {"messages": [*prompt(row), answer(row)], "weight": row["weight"]}

    def prompt_completion(row: Row) -> dict[str, Any]:
        pair = {"prompt": prompt(row), "completion": [answer(row)]}
        return pair if task.is_open else {**pair, "class_label": row["label"]}

    pairs = OPEN_PAIRS_SCHEMA if task.is_open else PROMPT_COMPLETION_SCHEMA
    return (
        audit_shape(task),
        Shape("messages", "messages", MESSAGES_SCHEMA, messages),
        Shape("prompt_completion", "prompt_completion", pairs, prompt_completion),
    )


def to_table(rows: Sequence[Row], shape: Shape) -> pa.Table:
    """Arrow table of `rows` in `shape`."""
    return pa.Table.from_pylist([shape.convert(row) for row in rows], schema=shape.schema)

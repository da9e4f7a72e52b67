"""What the user wants labelled: the task, and one labelled example."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

MAX_LABELS = 1024
DEFAULT_INSTRUCTION = "Classify the text."


class Model(BaseModel):
    """Base of everything read from outside: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def first_fault(exc: ValidationError) -> tuple[str, str, str]:
    """Where (dotted, "" for the whole), kind and message of the first fault that pydantic found."""
    fault = exc.errors(include_url=False, include_input=False)[0]
    return ".".join(map(str, fault["loc"])), fault["type"], fault["msg"].removeprefix("Value error, ")


def _clean_name(value: Any) -> Any:
    return (normalise_text(value) or value) if isinstance(value, str) else value  # blank names are refused by name


class Label(Model):
    """One class: the text that the model is trained to answer (NFC, no space around it), and what it means."""

    name: Annotated[str, BeforeValidator(_clean_name)] = Field(min_length=1)
    description: str = ""


def _label_from_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Task(Model):
    """An instruction, and the closed set of labels to choose from; None for answers in free text."""

    instruction: str = Field(default=DEFAULT_INSTRUCTION, min_length=1)
    labels: Annotated[
        tuple[Annotated[Label, BeforeValidator(_label_from_name)], ...] | None, Field(max_length=MAX_LABELS)
    ]

    @model_validator(mode="after")
    def _check_wording(self) -> Self:
        if not self.instruction.strip():
            raise ValueError("the instruction is blank")
        if self.labels is None:
            return self
        names = self.names
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"labels given twice: {', '.join(repeated)}")
        if len(names) < 2:
            raise ValueError(f"a task needs at least two labels, and this one has {len(names)}")
        return self

    @property
    def is_open(self) -> bool:
        """Whether answers are free text (docs/decisions/0009)."""
        return self.labels is None

    @property
    def classes(self) -> tuple[Label, ...]:
        """The labels; none of an open task."""
        return self.labels or ()

    @property
    def names(self) -> tuple[str, ...]:
        """Label names, in the order of every score array's last axis; none of an open task."""
        return tuple(label.name for label in self.classes)

    def positions(self, labels: Iterable[str]) -> list[int]:
        """Index in `names` of each label. Raises KeyError for one that the task does not have."""
        at = {name: index for index, name in enumerate(self.names)}
        return [at[label] for label in labels]


class Example(Model):
    """A text and, when it is known, its label."""

    id: str = ""
    text: str
    label: Annotated[str | None, BeforeValidator(_clean_name)] = None


def normalise_text(text: str) -> str:
    """NFC text without surrounding white space: what is stored, shown to the model and hashed."""
    return unicodedata.normalize("NFC", text).strip()


def text_key(text: str) -> str:
    """Two texts are the same when their keys are: NFC, with white space of any kind and length as one space."""
    return " ".join(normalise_text(text).split())


def text_id(prefix: str, *parts: object) -> str:
    """Stable id: `prefix` and 16 hex digits of SHA-256 over the parts.

    The same inputs give the same id in every run, so that work done twice is recognised.
    """
    joined = "\x1f".join(str(part) for part in parts)
    return f"{prefix}{hashlib.sha256(joined.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"

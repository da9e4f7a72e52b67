"""Label Studio: tasks with predictions to import there, the labelling set-up, and the annotations that come back.

Formats: https://labelstud.io/guide/predictions and https://labelstud.io/guide/task_format. Its parts are named here:
the text is the object `text`; a control `label` (labels) or `answer` (open tasks) holds the verdict, and a second one,
`verdict`, has the choice `reject`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from afdc.task import Task
from afdc.wire.common import Fault
from afdc.wire.datasets import MAX_REVIEWS, Dataset, Split
from afdc_server.api.problems import RequestError
from afdc_server.datasets.verdicts import INVALID_REVIEWS, Verdict, refuse, storable

TEXT, LABEL, ANSWER, VERDICT, REJECT = "text", "label", "answer", "verdict", "reject"
ROW_KEY = "afdc_row"
INLINE_LABELS = 20
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2


class _Foreign(BaseModel):
    """A part of another program's file: what is not needed here is passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class LabelStudioAnnotation(_Foreign):
    """What one annotator did. `was_cancelled`: they skipped the task."""

    result: list[dict[str, Any]] = Field(default_factory=list)
    was_cancelled: bool = False
    ground_truth: bool = False
    completed_by: Any = None
    updated_at: str | None = None
    created_at: str | None = None


class LabelStudioTask(_Foreign):
    """A task of a JSON export. The row's id is in `data.afdc_row`, or in `meta.row`."""

    data: dict[str, Any] = Field(default_factory=dict)
    meta: dict[str, Any] | None = None
    annotations: list[LabelStudioAnnotation] = Field(default_factory=list)


def task_of_row(row: Mapping[str, Any], dataset: Dataset, split: Split, value: float) -> dict[str, Any]:
    """A task to import, with the row's label as prediction where it has one. `value`: of `review_value`."""
    meta = {
        "row": row["id"],
        "dataset": dataset.id,
        "split": split,
        "source": row["source"],
        "reason": row["reason"],
        "intended": row.get("intended"),
    }
    answer = row["answer"] if dataset.task.is_open else row["label"]
    predictions = [] if not answer else [_prediction(answer, row, dataset)]
    data = {
        TEXT: row["text"],
        ROW_KEY: row["id"],
        "review_value": round(value, 4),
    }  # data is what one can sort by there
    return {"data": data, "meta": meta, "predictions": predictions}


def _prediction(answer: str, row: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    is_open = dataset.task.is_open
    region = {
        "id": row["id"],
        "from_name": ANSWER if is_open else LABEL,
        "to_name": TEXT,
        "type": "textarea" if is_open else "choices",
        "value": {"text": [answer]} if is_open else {"choices": [answer]},
    }
    score = {} if row["confidence"] is None else {"score": row["confidence"]}
    return {"model_version": row["scorer"] or dataset.id, **score, "result": [region]}


def labelling_config(task: Task) -> str:
    """The project's labelling set-up in Label Studio's XML. Texts of users are escaped."""
    lines = [
        "<View>",
        f"  <Header value={_quoted(task.instruction)}/>",
        f'  <Text name="{TEXT}" value="${TEXT}" valueType="text"/>',
        *(_answer_control() if task.is_open else _label_control(task)),
        f'  <Choices name="{VERDICT}" toName="{TEXT}" choice="multiple" required="false">',
        f'    <Choice value="{REJECT}" hint="no row for training: leave it out"/>',
        "  </Choices>",
        "</View>",
    ]
    return "\n".join(lines) + "\n"


def _answer_control() -> list[str]:
    return [f'  <TextArea name="{ANSWER}" toName="{TEXT}" maxSubmissions="1" editable="true" rows="4"/>']


def _label_control(task: Task) -> list[str]:
    layout = "inline" if len(task.names) <= INLINE_LABELS else "vertical"
    head = f'  <Choices name="{LABEL}" toName="{TEXT}" choice="single" required="false" layout="{layout}">'
    hints = {label.name: f" hint={_quoted(label.description)}" if label.description else "" for label in task.classes}
    return [head, *(f"    <Choice value={_quoted(name)}{hint}/>" for name, hint in hints.items()), "  </Choices>"]


def _quoted(text: str) -> str:
    """An XML attribute's value. A line break is written as a reference: a parser would read a space otherwise."""
    escaped = html.escape(NOT_XML.sub("\ufffd", text), quote=True)
    for character in "\n\r\t":
        escaped = escaped.replace(character, f"&#{ord(character)};")
    return f'"{escaped}"'


def read_annotations(tasks: Iterable[LabelStudioTask], task: Task) -> list[Verdict]:
    """The verdicts of an export. Tasks without an annotation that says something are passed over.

    Of several annotations of a task the one that is marked as ground truth counts, else the latest.

    Raises:
        RequestError: a task that names no row, an annotation with several labels, no annotation at all, or too many.
    """
    verdicts: list[Verdict] = []
    faults: list[Fault] = []
    seen = 0
    for at, one in enumerate(tasks):
        seen = at + 1
        found = _chosen(one)
        read = None if found is None else _read(one, *found, f"/{at}", task)
        if isinstance(read, Fault):
            faults.append(read)
        elif read is not None:
            verdicts.append(read)
    refuse(faults)
    if not 1 <= len(verdicts) <= MAX_REVIEWS:
        message = f"{len(verdicts):,} of the {seen:,} tasks are annotated: 1 to {MAX_REVIEWS:,} can be taken"
        raise RequestError(message, [Fault(code="count", message=message)], code=INVALID_REVIEWS)
    return verdicts


def _chosen(task: LabelStudioTask) -> tuple[int, LabelStudioAnnotation] | None:
    said = [(at, one) for at, one in enumerate(task.annotations) if one.result and not one.was_cancelled]
    return max(said, key=lambda pair: (pair[1].ground_truth, _time_of(pair[1]), pair[0]), default=None)


def _time_of(annotation: LabelStudioAnnotation) -> str:
    """ISO 8601 in UTC, which sorts as text."""
    return annotation.updated_at or annotation.created_at or ""


def _read(
    one: LabelStudioTask, at: int, annotation: LabelStudioAnnotation, pointer: str, task: Task
) -> Verdict | Fault | None:
    row = _row_of(one)
    if row is None:
        message = f"the task names no row: data.{ROW_KEY} is missing. Import what /export?format=labelstudio gives"
        return Fault(pointer=pointer, code="no_row", message=message)
    where = f"{pointer}/annotations/{at}/result"
    answers = _answers(annotation.result) if task.is_open else _labels(annotation.result)
    is_rejected = REJECT in _picked(annotation.result, VERDICT)
    if len(answers) > 1 and not is_rejected:
        message = f"{len(answers)} labels or answers, and a row takes one"
        return Fault(pointer=where, code="several_labels", message=message)
    if not answers and not is_rejected:
        return None
    return Verdict(
        row=row,
        decision="reject" if is_rejected else "relabel",
        label=None if is_rejected else answers[0],
        note="",
        reviewer=_reviewer(annotation.completed_by),
        row_at=f"{pointer}/data/{ROW_KEY}" if ROW_KEY in one.data else f"{pointer}/meta/row",
        label_at=where,
    )


def _row_of(task: LabelStudioTask) -> str | None:
    row = task.data.get(ROW_KEY, (task.meta or {}).get("row"))
    return row if isinstance(row, str) else None


def _picked(result: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    return [text for part in result if part.get("from_name") == name for text in _texts(part, "choices")]


def _labels(result: Sequence[Mapping[str, Any]]) -> list[str]:
    """Choices of the control `label`, else those of any control but `verdict`: a project may have names of its own."""
    names = {str(part.get("from_name")) for part in result} - {VERDICT}
    wanted = {LABEL} if LABEL in names else names
    return list(dict.fromkeys(text for name in sorted(wanted) for text in _picked(result, name)))


def _answers(result: Sequence[Mapping[str, Any]]) -> list[str]:
    names = {str(part.get("from_name")) for part in result if _texts(part, "text")}
    wanted = {ANSWER} if ANSWER in names else names
    return [text for part in result if part.get("from_name") in wanted for text in _texts(part, "text")]


def _texts(part: Mapping[str, Any], key: str) -> list[str]:
    value = part.get("value")
    found = value.get(key) if isinstance(value, dict) else None
    texts = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    return [text for text in texts if isinstance(text, str) and text.strip()]


def _reviewer(completed_by: Any) -> str:
    """A name for who annotated: Label Studio gives a number, or an object with an e-mail address."""
    if isinstance(completed_by, dict):
        completed_by = completed_by.get("email") or completed_by.get("id")
    return storable("" if completed_by is None else str(completed_by))[:200]

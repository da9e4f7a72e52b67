"""From verdicts to decisions about rows that are there, and what a decision makes of a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from afdc.errors import InputError
from afdc.inputs import check_text
from afdc.labels import label_index
from afdc.task import Task
from afdc.wire.common import Fault
from afdc.wire.datasets import Decision, Split
from afdc_server.artifacts import ArtifactStore
from afdc_server.datasets.reading import RowFiles, to_rows
from afdc_server.datasets.store import StoredDataset
from afdc_server.datasets.value import REVIEWED_STATES
from afdc_server.datasets.verdicts import Verdict, refuse

AuditRow = dict[str, Any]
SPLITS: tuple[Split, ...] = ("default", "rejected")
REVIEW_REASON = "review"
HUMAN = "human"
STATES: Mapping[Decision, str] = {"accept": "accepted", "relabel": "relabelled", "reject": "rejected"}


@dataclass(frozen=True, slots=True)
class Judged:
    """A decision about a row. `label`: what the row has from now on; None where it is rejected."""

    split: Split
    row: AuditRow
    decision: Decision
    label: str | None
    note: str
    reviewer: str

    @property
    def id(self) -> str:
        return str(self.row["id"])

    @property
    def stays(self) -> bool:
        """Whether the row is in its split afterwards."""
        return (self.decision == "reject") == (self.split == "rejected")

    @property
    def is_first(self) -> bool:
        """Whether nobody has judged the row before."""
        return self.row["review_state"] not in REVIEWED_STATES


def judge(verdicts: Sequence[Verdict], dataset: StoredDataset, artifacts: ArtifactStore) -> dict[str, Judged]:
    """Match verdicts with the rows, by id. To relabel a row with the label that it has is to accept it.

    Raises:
        RequestError: a row that is not there or that comes twice, a label that the task does not have, or an accepted
            row without a label; every fault with its place.
        StorageError: the rows cannot be read.
    """
    found = _find(dataset, artifacts, {verdict.row for verdict in verdicts})
    labels = label_index(dataset.task)
    judged: dict[str, Judged] = {}
    faults: list[Fault] = []
    for verdict in verdicts:
        row = found.get(verdict.row)
        if row is None or verdict.row in judged:
            faults.append(_row_fault(verdict, is_known=row is not None))
            continue
        split, fields = row
        label = _label_of(verdict, fields, labels, dataset.task)
        if isinstance(label, Fault):
            faults.append(label)
        kept = None if isinstance(label, Fault) else label
        decision = "accept" if verdict.decision == "relabel" and kept == fields["label"] else verdict.decision
        judged[verdict.row] = Judged(split, fields, decision, kept, verdict.note, verdict.reviewer)
    refuse(faults)
    return judged


def _row_fault(verdict: Verdict, *, is_known: bool) -> Fault:
    shown = repr(verdict.row[:80])
    if is_known:
        return Fault(pointer=verdict.row_at, code="repeated_row", message=f"row {shown} is reviewed twice here")
    return Fault(pointer=verdict.row_at, code="unknown_row", message=f"there is no row {shown} in this data set")


def _label_of(verdict: Verdict, row: Mapping[str, Any], labels: Any, task: Task) -> str | Fault | None:
    if verdict.decision == "reject":
        return None
    if verdict.decision == "accept":
        if row["label"] is not None:
            return str(row["label"])
        message = "the row has no label that could be accepted: relabel it"
        return Fault(pointer=verdict.label_at, code="no_label", message=message)
    given = verdict.label or ""
    label = labels.find(given)
    if label is None:
        return Fault(pointer=verdict.label_at, code="unknown_label", message=". ".join(labels.unknown(given)))
    return _checked_answer(label, verdict) if task.is_open else str(label)


def _checked_answer(answer: str, verdict: Verdict) -> str | Fault:
    try:
        return check_text(answer, "")
    except InputError as exc:
        return Fault(pointer=verdict.label_at, code="bad_answer", message=str(exc))


def _find(dataset: StoredDataset, artifacts: ArtifactStore, ids: set[str]) -> dict[str, tuple[Split, AuditRow]]:
    found: dict[str, tuple[Split, AuditRow]] = {}
    for split in SPLITS:
        files = dataset.rows(artifacts, split)
        numbers = list(_numbers_of(files, pa.array(sorted(ids), pa.string())))
        if numbers:
            found |= {row["id"]: (split, audit_form(row, dataset.task)) for row in to_rows(files.take(numbers))}
    return found


def _numbers_of(files: RowFiles, ids: pa.Array) -> Iterator[int]:
    for first, batch in files.batches(["id"]):
        mask = pc.is_in(batch.column(0), ids).to_numpy(zero_copy_only=False)
        yield from (np.flatnonzero(mask) + first).tolist()


def audit_form(row: AuditRow, task: Task) -> AuditRow:
    """A stored row in the columns that `write_dataset` reads: an answer stands where a label would."""
    if not task.is_open:
        return row
    renamed = {"answer": "label", "answer_history": "label_history"}
    return {renamed.get(name, name): value for name, value in row.items()} | {"intended": None, "distribution": []}


def next_rows(split: Split, rows: Iterable[AuditRow], judged: Mapping[str, Judged], task: Task) -> Iterator[AuditRow]:
    """Rows of a split of the new version: the old ones in their order, then those that reviews moved into it."""
    for row in rows:
        word = judged.get(row["id"])
        if word is None:
            yield row
        elif word.stays:
            yield reviewed_row(word, task)
    yield from (reviewed_row(word, task) for word in _moved(judged, into=split))


def _moved(judged: Mapping[str, Judged], into: Split) -> Iterator[Judged]:
    """In the order of ids, which does not depend on the order of the reviews."""
    return (judged[id] for id in sorted(judged) if judged[id].split != into and not judged[id].stays)


def reviewed_row(word: Judged, task: Task) -> AuditRow:
    """The row as the decision leaves it.

    An accepted row of the data set keeps all that the models said of it. What a person has labelled, or taken back in,
    is as certain as a seed: its measures are those of a distribution with one label.
    """
    row = {**word.row, "review_state": STATES[word.decision]}
    if word.decision == "reject":
        return {**row, "accepted_round": None, "reason": REVIEW_REASON, "weight": 0.0}
    if word.decision == "accept" and word.split == "default":
        return row
    source = HUMAN if word.decision == "relabel" else row["source"]
    return {**row, **_certain(word.label, task), "label": word.label, "source": source, "reason": REVIEW_REASON}


def _certain(label: str | None, task: Task) -> AuditRow:
    sure = {"confidence": 1.0, "margin": 1.0, "entropy": 0.0, "disagreement": 0.0, "weight": 1.0, "scorer": ""}
    if task.is_open:
        return {**sure, "agreement": None, "mean_logprob": None}
    return {**sure, "distribution": [1.0 if name == label else 0.0 for name in task.names]}

"""A review makes a new version of a data set: a folder of its own, with the one that was reviewed as its parent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, func, insert, select

from afdc.errors import ConflictError, StorageError
from afdc.wire.datasets import Dataset, Split
from afdc_server.artifacts import ArtifactStore
from afdc_server.datasets.judging import AuditRow, Judged, audit_form, judge, next_rows
from afdc_server.datasets.papers import card_facts, read_result
from afdc_server.datasets.publish import DatasetFacts, insert_dataset, publish_dataset
from afdc_server.datasets.store import StoredDataset, get_dataset
from afdc_server.datasets.verdicts import Verdict
from afdc_server.db.database import Database
from afdc_server.db.schema import datasets, reviews
from afdc_server.export.dataset import write_dataset
from afdc_server.scratch import scratch_folder
from afdc_server.service.errors import NotFoundError
from afdc_server.service.ids import DATASET, new_id

T = TypeVar("T")
Answer = Callable[[Connection, Dataset], T]


class Reviewing:
    """Makes versions of the data sets of one server. `work`: folder for what is being written."""

    def __init__(self, db: Database, artifacts: ArtifactStore, work: Path) -> None:
        self._db = db
        self._artifacts = artifacts
        self._work = work

    def review(self, tenant: str, id: str, verdicts: Sequence[Verdict], answer: Answer[T]) -> T:
        """Make the new version.

        Args:
            id: the version that was reviewed; it stays as it is.
            answer: makes the reply in the transaction that stores version and reviews.

        Raises:
            NotFoundError: no such data set. RequestError: a review that cannot be used; nothing is stored.
            ConflictError: somebody else made the same version, twice in a row.
            StorageError: the store or the database cannot be read or written.
        """
        with self._db.read() as connection:
            parent = get_dataset(connection, tenant, id)
        judged = judge(verdicts, parent, self._artifacts)
        made = new_id(DATASET)
        facts = self._publish(tenant, parent, judged, made)
        try:
            return self._store(tenant, parent, judged, made, facts, answer)
        except (ConflictError, NotFoundError):  # rolled back for certain: nobody can know the folder
            with suppress(StorageError):
                self._artifacts.delete(facts.location)
            raise

    def _publish(self, tenant: str, parent: StoredDataset, judged: Mapping[str, Judged], made: str) -> DatasetFacts:
        with self._db.read() as connection:
            result, unlabeled = read_result(connection, tenant, parent.wire.job)
        papers = card_facts(parent, self._artifacts, result, unlabeled)
        task = parent.task

        def rows(split: Split) -> Iterator[AuditRow]:
            before = (audit_form(row, task) for row in parent.rows(self._artifacts, split).rows())
            return next_rows(split, before, judged, task)

        with scratch_folder(".review-", self._work) as folder:  # its disk is the one for large files
            target = folder / "dataset"
            write_dataset(target, rows("default"), rows("rejected"), papers)
            return publish_dataset(self._artifacts, target, made)

    def _store(
        self,
        tenant: str,
        parent: StoredDataset,
        judged: Mapping[str, Judged],
        made: str,
        facts: DatasetFacts,
        answer: Answer[T],
    ) -> T:
        """Two reviews at once may want the same number: the one that comes too late takes the next."""

        def store() -> T:
            with self._db.write() as connection:
                _insert(connection, tenant, parent.wire, judged, made, facts)
                return answer(connection, get_dataset(connection, tenant, made).wire)

        try:
            return store()
        except ConflictError:
            return store()


def _insert(
    connection: Connection,
    tenant: str,
    parent: Dataset,
    judged: Mapping[str, Judged],
    made: str,
    facts: DatasetFacts,
) -> None:
    get_dataset(connection, tenant, parent.id)  # it may have been deleted meanwhile
    newest = select(func.max(datasets.c.version)).where(datasets.c.job == parent.job, datasets.c.tenant == tenant)
    version = max(connection.execute(newest).scalar_one() or 0, parent.version) + 1
    reviewed = parent.reviewed + sum(word.is_first for word in judged.values())
    insert_dataset(connection, tenant, parent.job, made, facts, version=version, parent=parent.id, reviewed=reviewed)
    now = time.time()
    connection.execute(insert(reviews), [_review_row(made, word, now) for word in judged.values()])


def _review_row(dataset: str, word: Judged, now: float) -> dict[str, object]:
    return {
        "dataset": dataset,
        "row": word.id,
        "decision": word.decision,
        "label": word.label,
        "text": word.row["text"],
        "note": word.note,
        "reviewer": word.reviewer,
        "created_at": now,
    }

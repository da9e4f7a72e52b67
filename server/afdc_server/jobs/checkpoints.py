"""Adapters of a job in the artifact store and the database: each from the end of its round on, and once.

Their ids are settled first, then their files are copied, then the rows say that they are there. A repeat after a kill
finds the ids, and what has a row already is not touched again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, delete, select, update

from afdc.adapter import read_manifest
from afdc.errors import StorageError
from afdc.layout import RunLayout
from afdc.result import RoundResult, RunResult
from afdc_pipeline.stages.average import AVERAGE
from afdc_server.artifacts import ArtifactStore
from afdc_server.datasets.publish import AdapterFacts, insert_adapter, publish_adapter
from afdc_server.db.database import Database
from afdc_server.db.schema import adapters
from afdc_server.jobs.rebuild import DATASET_KEY, PUBLISHED, adapter_folders, published_locations
from afdc_server.ledger import SqlLedger
from afdc_server.service.ids import ADAPTER, DATASET, new_id


@dataclass(frozen=True, slots=True)
class _Known:
    """What the database has of an adapter."""

    id: str
    location: str
    round: int


@dataclass(frozen=True)
class Checkpoints:
    """The adapters of one job, for the worker that holds it."""

    db: Database
    artifacts: ArtifactStore
    ledger: SqlLedger
    layout: RunLayout
    tenant: str

    def keep(self, rounds: Sequence[RoundResult]) -> None:
        """Publish the adapters of the rounds so far, as far as the engine has taken them.

        They take the place of those that the same rounds had before the job began anew.

        Raises:
            StorageError: the artifact store cannot be written. FencedError: another process has the job now.
        """
        last = rounds[-1].round
        taken = {one["adapter"] for one in self.ledger.results("swap-") if not one["refused"]}
        folders = [folder for folder in adapter_folders(self.layout) if folder.name in taken]
        folders = [folder for folder in folders if read_manifest(folder).round <= last]
        rows, names = self._rows(), {folder.name for folder in folders}
        if names == {name for name, row in rows.items() if row.round <= last}:
            return
        new = self._publish(folders, self._settle(names, rows), rows)
        with self.ledger.transaction() as connection:
            gone = self._remove(connection, adapters.c.round <= last, adapters.c.name.not_in(sorted(names)))
            self._insert(connection, new)
            self._mark(connection, names, rounds)
        self.forget(gone)

    def locations(self) -> set[str]:
        """Folders in the artifact store that a row names."""
        return {row.location for row in self._rows().values()}

    def publish_all(self) -> tuple[dict[str, str], dict[str, AdapterFacts]]:
        """Publish what has no row yet. Returns the ids of all that the job hands out, and by id what is new of it.

        Ids that another server has settled for adapters of its own training are given up with what lies there.
        """
        folders, rows = adapter_folders(self.layout), self._rows()
        names = {folder.name for folder in folders}
        ids: dict[str, str] = self.ledger.get_value(PUBLISHED) or {}
        if not ids.keys() <= {DATASET_KEY, *names}:
            named = {row.location for row in rows.values()}
            self.ledger.set_value(PUBLISHED, {})
            for location in published_locations(ids):
                if location not in named:
                    self.artifacts.delete(location)
        ids = self._settle(names, rows, dataset=True)
        return ids, self._publish(folders, ids, rows)

    def finish(self, connection: Connection, new: Mapping[str, AdapterFacts], result: RunResult) -> list[str]:
        """Say what is new, which adapter is handed out and which ones were activated. Rows of earlier attempts go.

        Returns their folders, which the caller removes after the commit (`forget`).
        """
        names = {folder.name for folder in adapter_folders(self.layout)}
        gone = self._remove(connection, adapters.c.name.not_in(sorted(names)))
        self._insert(connection, new)
        self._mark(connection, names, result.rounds, result.adapter.name if result.adapter else "")
        return gone

    def forget(self, locations: Sequence[str]) -> None:
        """Remove folders that no row names any more. What cannot be removed now is swept later."""
        with suppress(StorageError):
            for location in locations:
                self.artifacts.delete(location)

    def _rows(self) -> dict[str, _Known]:
        """By name."""
        columns = (adapters.c.name, adapters.c.id, adapters.c.location, adapters.c.round)
        with self.db.read() as connection:
            found = connection.execute(select(*columns).where(adapters.c.job == self.ledger.job)).all()
        return {row.name: _Known(row.id, row.location, row.round) for row in found}

    def _settle(self, names: set[str], rows: dict[str, _Known], *, dataset: bool = False) -> dict[str, str]:
        """Ids under which all this is published, the same ones after a kill. What has a row keeps the row's."""
        known: dict[str, str] = self.ledger.get_value(PUBLISHED) or {}
        ids = {**known, **{name: row.id for name, row in rows.items() if name in names}}
        if dataset:
            ids.setdefault(DATASET_KEY, new_id(DATASET))
        for name in sorted(names - ids.keys()):
            ids[name] = new_id(ADAPTER)
        if ids != known:
            self.ledger.set_value(PUBLISHED, ids)
        return ids

    def _publish(
        self, folders: Sequence[Path], ids: dict[str, str], rows: dict[str, _Known]
    ) -> dict[str, AdapterFacts]:
        new = [folder for folder in folders if folder.name not in rows]
        return {ids[folder.name]: publish_adapter(self.artifacts, folder, ids[folder.name]) for folder in new}

    def _insert(self, connection: Connection, new: Mapping[str, AdapterFacts]) -> None:
        """`_mark` says the rest of them."""
        for id, facts in new.items():
            insert_adapter(connection, self.tenant, self.ledger.job, id, facts)

    def _mark(
        self, connection: Connection, names: Collection[str], rounds: Sequence[RoundResult], final: str = ""
    ) -> None:
        """Not activated is what the engine would not serve, what lost held-out gold, and means that score others."""
        refused = {one["adapter"] for one in self.ledger.results("swap-") if one["refused"]}
        means = {one["adapter"] for one in self.ledger.results(f"train-{AVERAGE}")} - {final}
        idle = sorted(refused | means | {one.adapter for one in rounds if not one.activated})
        connection.execute(
            update(adapters)
            .where(adapters.c.job == self.ledger.job, adapters.c.name.in_(sorted(names)))
            .values(final=adapters.c.name == final, activated=adapters.c.name.not_in(idle))
        )

    def _remove(self, connection: Connection, *conditions: ColumnElement[bool]) -> list[str]:
        where = (adapters.c.job == self.ledger.job, *conditions)
        locations = list(connection.execute(select(adapters.c.location).where(*where)).scalars())
        connection.execute(delete(adapters).where(*where))
        return locations

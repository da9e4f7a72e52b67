"""What a job's folder must hold before it goes on, and what happens when it does not.

The ledger lies in the database, the files that it names in the folder of one server. Another server that takes the job
over has none of them, and a disk may lose or damage some. Every stage can be computed again from the inputs, so the job
then begins anew instead of failing at the first file that it misses.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from sqlalchemy import Connection

from afdc.adapter import verify_adapter
from afdc.errors import AfdcError, StorageError
from afdc.layout import RunLayout
from afdc.result import RunResult
from afdc_server.artifacts import ArtifactStore
from afdc_server.datasets.publish import adapter_location, dataset_location
from afdc_server.export.dataset import verify_dataset
from afdc_server.ledger import SqlLedger
from afdc_server.local.job import finished_result
from afdc_server.service.ids import ADAPTER, is_id
from afdc_server.store import ParquetStore

PUBLISHED = "published"
"""Name of the value that holds the ids under which the job's results are published: the data set's, and one by the
name of each adapter."""
DATASET_KEY = "dataset"
NOTHING_HERE = "its files are not on this server: another one made them, or they were removed after its end"


def whole_result(layout: RunLayout) -> RunResult | None:
    """The result of a run that is finished and lies there whole. Of a damaged one the results are written anew."""
    result = finished_result(layout)
    if result is None:
        return None
    try:
        for folder in adapter_folders(layout):
            verify_adapter(folder)
    except AfdcError:
        return None  # `prepare_folder` sees it, too
    try:
        verify_dataset(layout.dataset)
    except AfdcError:
        _remove(layout, results_only=True)
        return None
    return result


def adapter_folders(layout: RunLayout) -> list[Path]:
    """Folders of the adapters of the rounds; those of the folds are no one's to serve."""
    root = layout.adapters
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [path for path in folders if not path.name.startswith(".") and not _is_fold(path)]


def _is_fold(folder: Path) -> bool:
    """`{job}-r1-f0-{sha12}`: an adapter that left seeds out, to judge the round's own."""
    parts = folder.name.rsplit("-", 2)
    return len(parts) == 3 and parts[1].startswith("f") and parts[1][1:].isdigit()


def prepare_folder(
    ledger: SqlLedger,
    layout: RunLayout,
    artifacts: ArtifactStore,
    told: Collection[str],
    forgotten: Callable[[Connection], None],
) -> None:
    """Let a job go on from what is finished, or from the beginning where some of that is missing or damaged.

    Args:
        forgotten: called in the transaction that makes it begin anew.
        told: folders in the artifact store that clients know of: they stay until the job has others in their place.

    Raises:
        StorageError: the folder or the artifact store cannot be written.
    """
    reason = find_damage(ledger, layout)
    if not reason:
        return
    locations = [one for one in published_locations(ledger.get_value(PUBLISHED) or {}) if one not in told]
    _remove(layout)  # before the ledger forgets: whoever is killed in between finds the damage again
    ledger.forget(reason, forgotten)
    for location in locations:
        artifacts.delete(location)


def find_damage(ledger: SqlLedger, layout: RunLayout) -> str:
    """The first finished file that is not what the ledger says; "" for none."""
    store = ParquetStore(layout.chunks)
    references, trained = ledger.references(), ledger.results("train-")
    if (references or trained) and not layout.root.exists():
        return NOTHING_HERE
    try:
        for ref in references:
            store.get(ref)
        for result in trained:
            if result["adapter"]:
                verify_adapter(layout.adapters / result["adapter"])
    except AfdcError as exc:
        return exc.message.replace(f"{layout.root}/", "")
    return ""


def published_locations(ids: dict[str, str]) -> list[str]:
    """Folders in the artifact store of what was, or was about to be, published under these ids."""
    return [adapter_location(id) if is_id(id, ADAPTER) else dataset_location(id) for id in ids.values()]


def _remove(layout: RunLayout, *, results_only: bool = False) -> None:
    folders = [layout.dataset, layout.adapter] if results_only else [layout.root]
    try:
        layout.result.unlink(missing_ok=True)  # first: its presence means that the rest is whole
        for folder in folders:
            if folder.exists():
                shutil.rmtree(folder)
    except OSError as exc:
        raise StorageError(f"cannot remove damaged files of a job: {exc}", remedy="Check the disk's rights") from exc

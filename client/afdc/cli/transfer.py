"""`afdc pull` and `afdc export`: what a job has made, on this machine."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from glob import escape
from pathlib import Path

from afdc.cli.connect import ServerFlags, connect
from afdc.cli.output import copy_to_stdout, message_console, print_json, visible
from afdc.cli.progress import LiveProgress
from afdc.cli.watch import Stage
from afdc.errors import ConflictError, UsageError
from afdc.files import user_path
from afdc.layout import RunLayout
from afdc.sdk.adapters import AdapterHandle
from afdc.sdk.client import Client
from afdc.sdk.datasets import DatasetHandle
from afdc.sdk.exceptions import NotReadyError
from afdc.sdk.job_handle import await_remedy
from afdc.sdk.sending import SyncSender
from afdc.wire.datasets import ExportFormat, Split, StoredFile

UNFINISHED = ".part"


def pull_command(flags: ServerFlags, id: str, out: Path | None, adapter: bool | None, *, as_json: bool) -> None:
    """Body of `afdc pull`.

    Raises:
        AfdcError: the job has not made it yet, the folder holds something else, or what arrives is not what was listed.
    """
    with connect(flags) as client, LiveProgress(message_console()) as progress:
        layout = RunLayout(user_path(out) if out is not None else Path(id))  # not the reply's id, which may be any path
        dataset, made = _made(client, id, adapter)
        check_folder(layout.dataset, dataset.dataset.files)
        if made is not None:
            check_folder(layout.adapter, made.adapter.files)
        fetch(progress, "download data set", dataset.download, dataset.dataset.files, layout.dataset)
        if made is not None:
            fetch(progress, "download adapter", made.download, made.adapter.files, layout.adapter)
    if as_json:
        taken = {"id": dataset.id, "path": str(layout.dataset), "rows": dataset.dataset.rows}
        tuned = None if made is None else {"id": made.id, "path": str(layout.adapter)}
        print_json({"job": dataset.dataset.job, "dataset": taken, "adapter": tuned})
    else:
        for path in [layout.dataset, *([layout.adapter] if made is not None else [])]:
            sys.stdout.write(f"{path}\n")
        message_console().print(f"{dataset.dataset.rows:,} rows", soft_wrap=True)


def _made(
    client: Client, id: str, adapter: bool | None
) -> tuple[DatasetHandle[SyncSender], AdapterHandle[SyncSender] | None]:
    """Handles of a data set and, for the id of a job, of the adapter if that is wanted."""
    if id.startswith("ds_"):
        return client.datasets.get(id), None
    job = client.jobs.get(id)
    wants_adapter = adapter if adapter is not None else job.job.adapter is not None
    return job.dataset(), job.adapter() if wants_adapter else None


def check_folder(folder: Path, files: Sequence[StoredFile]) -> None:
    """See that a download would not end up among files of something else.

    Raises:
        ConflictError: it would.
    """
    listed = {file.path for file in files}
    there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    foreign = sorted(path for path in there if path not in listed and path.removesuffix(UNFINISHED) not in listed)
    if foreign:
        told = f"{folder} holds {visible(foreign[0])!r}, which is not of this download"
        raise ConflictError(told, remedy="Choose another folder with --out")


def fetch(
    progress: LiveProgress, title: str, download: Callable[..., Path], files: Sequence[StoredFile], folder: Path
) -> None:
    """Download file by file; the bar counts bytes."""
    progress.stage(Stage(0, "download"), title, sum(file.bytes for file in files))
    for file in files:
        download(folder, include=escape(file.path))
        progress.advance(file.bytes, files=1)


def export_command(
    flags: ServerFlags, source: str, format: ExportFormat, output: str, *, split: Split, as_json: bool
) -> None:
    """Body of `afdc export`.

    Raises:
        UsageError: "-" is a terminal. NotReadyError: the job has no data set yet.
    """
    to_stdout = output == "-"
    if to_stdout and as_json:
        raise UsageError("--json and --output - both want stdout", remedy="Leave one of them out")
    if to_stdout and sys.stdout.isatty():
        remedy = "Name a file with --output, or use a pipe: texts of anyone may hold what a terminal obeys"
        raise UsageError("a data set is not for a terminal", remedy=remedy)
    with connect(flags) as client:
        id = dataset_id(client, source)
        if to_stdout:
            _print_export(client, id, format, split)
            return
        path = client.datasets.export(id, format, output, split=split)
        if format == "labelstudio":
            path.with_name(f"{path.name}.xml").write_text(client.datasets.labelstudio_config(id), encoding="utf-8")
    size = path.stat().st_size
    if as_json:
        print_json({"dataset": id, "format": format, "path": str(path), "bytes": size})
    else:
        message_console().print(f"{size:,} bytes: {path}", soft_wrap=True)
        if format == "labelstudio":
            message_console().print(f"labelling set-up of the project: {path}.xml", soft_wrap=True)


def review_command(flags: ServerFlags, source: str, file: Path, *, as_json: bool) -> None:
    """Body of `afdc review`.

    Raises:
        AfdcError: the file cannot be read, or names a row or label that is not there; nothing is stored then.
    """
    with connect(flags) as client:
        id = dataset_id(client, source)
        if id != source:  # of a job: what was reviewed before stays in
            id = client.datasets.get(id).dataset.latest or id
        made = client.datasets.review_file(id, file).dataset
    if as_json:
        print_json({"dataset": made.id, "version": made.version, "rows": made.rows, "reviewed": made.reviewed})
    else:
        sys.stdout.write(f"{visible(made.id)}\n")
        origin = f"version {made.version}, made from {visible(str(made.parent))}"
        told = f"{origin}: {made.rows:,} rows, {made.reviewed:,} reviewed"
        message_console().print(told, soft_wrap=True)


def dataset_id(client: Client, source: str) -> str:
    """The id of a data set, or that of the one that a job has made.

    Raises:
        NotReadyError: the job has none yet.
    """
    if not source.startswith("job_"):
        return source
    job = client.jobs.get(source).job
    if job.dataset is None:
        raise NotReadyError(f"job {visible(job.id)} has no data set: it is {job.status}", remedy=await_remedy(job))
    return job.dataset


def _print_export(client: Client, id: str, format: ExportFormat, split: Split) -> None:
    """Through a file: stdout cannot take back what a broken download has brought."""
    with tempfile.TemporaryDirectory(prefix="afdc-export-") as folder:
        path = client.datasets.export(id, format, Path(folder) / "export", split=split)
        with path.open("rb") as stream:
            copy_to_stdout(stream)

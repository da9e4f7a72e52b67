"""`client.datasets`: look at a data set, download it, review its rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

from afdc.errors import InputError, UsageError
from afdc.files import sha256_bytes, user_path
from afdc.sdk.core import IDEMPOTENCY_KEY, Call, Params, checked, get, no_body, parse_text, post, reply_as, route
from afdc.sdk.downloads import EXPORT_PATIENCE_S, download_export, download_folder
from afdc.sdk.faces import Face, S, feed, operation
from afdc.sdk.frames import Table, cache_folder, read_datasets, read_pandas, table_pattern
from afdc.sdk.paging import items
from afdc.sdk.render import dataset_html
from afdc.sdk.seeds import operation_key
from afdc.sdk.sending import Sender, send
from afdc.wire.datasets import Dataset, ExportFormat, Review, ReviewFilter, ReviewsCreate, Row, Split

REVIEW_PATIENCE_S = 240.0
"""A large data set is written anew while the server is silent."""


class RowFilters(TypedDict, total=False):
    """What `rows` can be narrowed down by; all that are given must hold."""

    split: Split
    label: str
    source: str
    reason: str
    min_confidence: float
    max_confidence: float
    review: ReviewFilter
    q: str


class Datasets(Face[S]):
    """Data sets that jobs have made. A data set never changes; a review makes a new version with an id of its own."""

    @operation
    async def get(self, id: str) -> DatasetHandle[S]:
        """One data set."""
        return DatasetHandle(self._sender, await read_dataset(self._sender, id))

    @feed
    def rows(self, id: str, *, limit: int | None = None, **filters: Unpack[RowFilters]) -> AsyncIterator[Row]:
        """Rows, each with its story; pages are fetched as they are needed.

        Args:
            limit: at most so many.
            filters: split ("default", or "rejected" for what was left out), label, source, reason (why it was kept or
                left out), min_confidence and max_confidence (0..1), review ("needed" or "done"), q (words of the text).
        """
        return iter_rows(self._sender, id, filters, limit)

    @operation
    async def download(self, id: str, folder: str | Path, *, include: str = "*") -> Path:
        """Download the files into `folder`; returns it. Called again, it goes on where it was cut off.

        Args:
            include: shell pattern of the paths that are wanted, such as "data/*".

        Raises:
            DownloadError: a file whose SHA-256 is not the listed one, or whose path leaves the folder.
            StorageError: the disk cannot be written.
        """
        return await download_dataset(self._sender, await read_dataset(self._sender, id), folder, include)

    @operation
    async def export(self, id: str, format: ExportFormat, path: str | Path, *, split: Split = "default") -> Path:
        """Write the rows in another format to `path`; returns it.

        Args:
            split: "rejected" for what was left out, in the formats that are not for training.

        Raises:
            StorageError: the disk cannot be written.
        """
        return await download_export(self._sender, export_call(id, format, split), path)

    @operation
    async def reviews(
        self,
        id: str,
        reviews: Iterable[Review | Mapping[str, Any]],
        *,
        reviewer: str = "",
        idempotency_key: str | None = None,
    ) -> DatasetHandle[S]:
        """Say what is right: the new version of the data set, in which the reviews are.

        Args:
            reviews: `{"row": id, "decision": "accept" | "reject" | "relabel", "label": the right one}`.
            idempotency_key: the same key makes the same version once, however often this is called; default: a new one.
        """
        return DatasetHandle(self._sender, await send_reviews(self._sender, id, reviews, reviewer, idempotency_key))

    @operation
    async def review_file(self, id: str, path: str | Path) -> DatasetHandle[S]:
        """`reviews` out of a file: the JSON that Label Studio exports, or `{"reviews": [...]}`.

        The same file makes one version of a version, however often it is sent.

        Raises:
            InputError: the file cannot be read.
        """
        return DatasetHandle(self._sender, await send_review_file(self._sender, id, path))

    @operation
    async def labelstudio_config(self, id: str) -> str:
        """Labelling set-up (XML) of a Label Studio project for the tasks of `export(id, "labelstudio", ...)`."""
        return await send(self._sender, get(parse_text, route("datasets", id, "labelstudio-config")))

    @operation
    async def to_datasets(self, id: str, *, table: Table = "default", folder: str | Path | None = None) -> Any:
        """The table as a `datasets.Dataset`.

        Args:
            table: default (every column), messages, prompt_completion or rejected.
            folder: where the files are kept; default: the cache, since a data set does not change.

        Raises:
            UsageError: the package `datasets` is not installed.
        """
        return await load_table(self._sender, await read_dataset(self._sender, id), table, folder, read_datasets)

    @operation
    async def to_pandas(self, id: str, *, table: Table = "default", folder: str | Path | None = None) -> Any:
        """The table as a `pandas.DataFrame`; arguments as in `to_datasets`.

        Raises:
            UsageError: pandas or pyarrow is not installed.
        """
        return await load_table(self._sender, await read_dataset(self._sender, id), table, folder, read_pandas)


class DatasetHandle(Face[S]):
    """One data set: `dataset` is what the server says of it."""

    def __init__(self, sender: S, dataset: Dataset) -> None:
        super().__init__(sender)
        self.dataset = dataset

    @property
    def id(self) -> str:
        return self.dataset.id

    @feed
    def rows(self, *, limit: int | None = None, **filters: Unpack[RowFilters]) -> AsyncIterator[Row]:
        """As `Datasets.rows`."""
        return iter_rows(self._sender, self.id, filters, limit)

    @operation
    async def download(self, folder: str | Path, *, include: str = "*") -> Path:
        """As `Datasets.download`."""
        return await download_dataset(self._sender, self.dataset, folder, include)

    @operation
    async def export(self, format: ExportFormat, path: str | Path, *, split: Split = "default") -> Path:
        """As `Datasets.export`."""
        return await download_export(self._sender, export_call(self.id, format, split), path)

    @operation
    async def reviews(
        self,
        reviews: Iterable[Review | Mapping[str, Any]],
        *,
        reviewer: str = "",
        idempotency_key: str | None = None,
    ) -> DatasetHandle[S]:
        """As `Datasets.reviews`."""
        made = await send_reviews(self._sender, self.id, reviews, reviewer, idempotency_key)
        return DatasetHandle(self._sender, made)

    @operation
    async def review_file(self, path: str | Path) -> DatasetHandle[S]:
        """As `Datasets.review_file`."""
        return DatasetHandle(self._sender, await send_review_file(self._sender, self.id, path))

    @operation
    async def labelstudio_config(self) -> str:
        """As `Datasets.labelstudio_config`."""
        return await send(self._sender, get(parse_text, route("datasets", self.id, "labelstudio-config")))

    @operation
    async def to_datasets(self, *, table: Table = "default", folder: str | Path | None = None) -> Any:
        """As `Datasets.to_datasets`."""
        return await load_table(self._sender, self.dataset, table, folder, read_datasets)

    @operation
    async def to_pandas(self, *, table: Table = "default", folder: str | Path | None = None) -> Any:
        """As `Datasets.to_pandas`."""
        return await load_table(self._sender, self.dataset, table, folder, read_pandas)

    def __repr__(self) -> str:
        return f"<DatasetHandle {self.id}: {self.dataset.rows:,} rows, version {self.dataset.version}>"

    def _repr_html_(self) -> str:
        return dataset_html(self.dataset)


async def read_dataset(sender: Sender, id: str) -> Dataset:
    """`GET /datasets/{id}`."""
    return await send(sender, get(reply_as(Dataset), route("datasets", id)))


def iter_rows(sender: Sender, id: str, filters: RowFilters, limit: int | None) -> AsyncIterator[Row]:
    """`GET /datasets/{id}/rows`, all pages.

    Raises:
        UsageError: a filter that there is not.
    """
    unknown = set(filters) - set(RowFilters.__annotations__)
    if unknown:
        known = ", ".join(RowFilters.__annotations__)
        raise UsageError(f"rows have no filter {min(unknown)!r}", remedy=f"There are {known}")
    return items(sender, Row, route("datasets", id, "rows"), cast(Params, filters), limit=limit)


async def download_dataset(sender: Sender, dataset: Dataset, folder: str | Path, include: str = "*") -> Path:
    """Download its files."""
    return await download_folder(sender, route("datasets", dataset.id), dataset.files, folder, include)


def export_call(id: str, format: ExportFormat, split: Split) -> Call[None]:
    """`GET /datasets/{id}/export`."""
    path = route("datasets", id, "export")
    headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
    return get(no_body, path, {"format": format, "split": split}, headers=headers, patience_s=EXPORT_PATIENCE_S)


async def send_reviews(
    sender: Sender, id: str, reviews: Iterable[Review | Mapping[str, Any]], reviewer: str, key: str | None
) -> Dataset:
    """`POST /datasets/{id}/reviews`."""
    body = checked(ReviewsCreate, reviews=list(reviews), reviewer=reviewer)
    path = route("datasets", id, "reviews")
    call = post(reply_as(Dataset), path, body, key=operation_key(key), patience_s=REVIEW_PATIENCE_S)
    return await send(sender, call)


async def send_review_file(sender: Sender, id: str, path: str | Path) -> Dataset:
    """`POST /datasets/{id}/reviews` with the bytes of a file, under a key that is theirs and the data set's."""
    try:
        content = await sender.offload(user_path(path).read_bytes)
    except OSError as exc:
        raise InputError(f"{path}: {exc.strerror}", remedy="Name the file that was exported") from exc
    headers = {"Content-Type": "application/json", IDEMPOTENCY_KEY: f"file-{sha256_bytes(content)}-{id}"}
    where, parse = route("datasets", id, "reviews"), reply_as(Dataset)
    return await send(sender, Call("POST", where, parse, (), content, headers, True, REVIEW_PATIENCE_S))


async def load_table(
    sender: Sender, dataset: Dataset, table: Table, folder: str | Path | None, read: Callable[[Path, Table], Any]
) -> Any:
    """Download what the table needs, and read it."""
    root = await download_dataset(sender, dataset, folder or cache_folder(dataset.id), table_pattern(table))
    return await sender.offload(partial(read, root, table))

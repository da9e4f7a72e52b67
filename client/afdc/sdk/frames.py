"""Downloaded Parquet as a `datasets.Dataset` or a `pandas.DataFrame`; the packages are imported when needed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal

from afdc.errors import UsageError
from afdc.files import cache_root
from afdc.sdk.exceptions import NotReadyError

Table = Literal["default", "messages", "prompt_completion", "rejected"]


def table_pattern(table: Table) -> str:
    """The files of a table: the configurations that the card of the data set names."""
    return f"{'data' if table == 'default' else table}/*.parquet"


def cache_folder(id: str) -> Path:
    """Where the files of a data set are kept: under AFDC_CACHE, by default the user's cache folder."""
    return cache_root() / "datasets" / id


def read_datasets(folder: Path, table: Table) -> Any:
    """A `datasets.Dataset`.

    Raises:
        UsageError: the package is not installed.
        NotReadyError: the data set has no such rows.
    """
    dataset: Any = _package("datasets").Dataset
    try:
        return dataset.from_parquet([str(path) for path in _files(folder, table)])
    except ValueError as exc:  # files without a row
        raise NotReadyError(f"the data set in {folder} has no rows of {table!r}") from exc


def read_pandas(folder: Path, table: Table) -> Any:
    """A `pandas.DataFrame`.

    Raises:
        UsageError: pandas or pyarrow is not installed.
        NotReadyError: the data set has no such rows.
    """
    pandas: Any = _package("pandas")
    _package("pyarrow")
    return pandas.concat([pandas.read_parquet(path) for path in _files(folder, table)], ignore_index=True)


def _files(folder: Path, table: Table) -> list[Path]:
    found = sorted(folder.glob(table_pattern(table)))
    if not found:
        raise NotReadyError(f"the data set in {folder} has no table {table!r}")
    return found


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        raise UsageError(f"this needs the Python package {exc.name!r}", remedy=f"pip install {name}") from exc

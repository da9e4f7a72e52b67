"""Data sets as `datasets.Dataset` and `pandas.DataFrame`, out of real Parquet."""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from afdc.errors import UsageError
from afdc.sdk.exceptions import NotReadyError
from tests.sdk.service import DATASET, JOB, NOW, TASK, Service, settle

pq = pytest.importorskip("pyarrow.parquet")


def parquet(texts: list[str]) -> bytes:
    import pyarrow as pa

    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "label": ["up"] * len(texts)}), sink)
    return sink.getvalue()


@pytest.fixture(autouse=True)
def _dataset(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFDC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    contents = {
        "data/train-00000.parquet": parquet(["a", "b"]),
        "data/train-00001.parquet": parquet(["c"]),
        "rejected/train-00000.parquet": parquet(["r"]),
        "README.md": b"never fetched",
    }
    files = [{"path": p, "bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for p, c in contents.items()]
    found = {"id": DATASET, "job": JOB, "version": 1, "task": TASK, "rows": 3, "rejected": 1, "created_at": NOW}
    service.on(f"GET /v1/datasets/{DATASET}", found | {"files": files})
    for path, content in contents.items():
        service.on(f"GET /v1/datasets/{DATASET}/files/{path}", httpx.Response(200, content=content))


async def test_pandas(client: Any, service: Service, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    frame = await settle(client.datasets.to_pandas(DATASET))
    assert list(frame["text"]) == ["a", "b", "c"]
    assert list(frame.index) == [0, 1, 2]
    handle = await settle(client.datasets.get(DATASET))
    assert list((await settle(handle.to_pandas(table="rejected", folder=tmp_path / "mine")))["text"]) == ["r"]
    assert (tmp_path / "mine" / "rejected" / "train-00000.parquet").exists()
    assert len([request for request in service.requests if "/files/" in request.url.path]) == 3
    with pytest.raises(NotReadyError, match="no table 'messages'"):
        await settle(handle.to_pandas(table="messages"))


async def test_datasets(client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    found = await settle(client.datasets.to_datasets(DATASET))
    assert found["text"][:] == ["a", "b", "c"]
    assert (await settle((await settle(client.datasets.get(DATASET))).to_datasets())).num_rows == 3


@pytest.mark.parametrize(("operation", "package"), [("to_pandas", "pandas"), ("to_datasets", "datasets")])
async def test_a_package_that_is_not_there(
    client: Any, monkeypatch: pytest.MonkeyPatch, operation: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=f"pip install {package}"):
        await settle(getattr(client.datasets, operation)(DATASET))

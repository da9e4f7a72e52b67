"""Durable writes: what is flushed, and which errors are the disk's."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from afdc.errors import StorageError, UsageError
from afdc.files import atomic_writer, check_target, publish_folder


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """The system refuses to let a file grow beyond `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [2_000, 200_000], ids=["at the flush", "inside a write"])
def test_a_write_that_the_disk_refuses_is_a_storage_error(tmp_path: Path, size: int) -> None:
    with (
        small_files(1_000),
        pytest.raises(StorageError, match=r"cannot write .*y\.jsonl"),
        atomic_writer(tmp_path / "y.jsonl") as stream,
    ):
        stream.writelines([b"x" * size])
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_writer_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError), atomic_writer(tmp_path / "y.jsonl"):
        raise ConnectionRefusedError(111, "the engine is gone")
    assert not list(tmp_path.iterdir())


def test_a_target_is_checked_without_a_trace(tmp_path: Path) -> None:
    check_target(tmp_path / "new" / "y.jsonl")
    assert not list((tmp_path / "new").iterdir())
    with pytest.raises(UsageError, match="is a folder"):
        check_target(tmp_path)
    with pytest.raises(UsageError, match="not a regular file"):
        check_target(Path("/dev/null"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        check_target(tmp_path / "file" / "y.jsonl")


def test_every_folder_of_an_artifact_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made" / "data" / "deep").mkdir(parents=True)
    (tmp_path / "made" / "data" / "deep" / "rows").write_text("1")
    flushed: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        flushed.append(os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), tmp_path))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    publish_folder(tmp_path / "made", tmp_path / "final")
    assert flushed == ["made/data/deep/rows", "made/data/deep", "made/data", "made", "."]


def test_two_threads_may_write_one_file(tmp_path: Path) -> None:
    path, both = tmp_path / "file", threading.Barrier(2)

    def write(byte: bytes) -> None:
        with atomic_writer(path) as stream:
            both.wait(10)
            stream.write(byte * 100_000)
            both.wait(10)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, (b"a", b"b")))
    assert set(path.read_bytes()) in ({97}, {98})
    assert [one.name for one in tmp_path.iterdir()] == ["file"]

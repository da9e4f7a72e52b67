"""The exported folder: every configuration loads, bytes are reproducible, nothing published is replaced."""

from __future__ import annotations

import errno
import hashlib
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from afdc.config import RunConfig
from afdc.errors import ConflictError, StorageError
from afdc.prompting import system_prompt
from afdc.result import EvalSummary
from afdc.settings import file_layer
from afdc_server.export import dataset
from afdc_server.export.card import CardFacts
from afdc_server.export.dataset import read_summary, verify_dataset, write_dataset
from afdc_server.export.schema import AUDIT_COLUMNS

Rows = list[dict[str, Any]]


def load(folder: Path, config: str | None, cache: Path) -> Any:
    from datasets import load_dataset

    return load_dataset(str(folder), config, cache_dir=str(cache), split="train")


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def written(tmp_path: Path, rows: Rows, rejected: Rows, facts: CardFacts) -> Path:
    write_dataset(tmp_path / "dataset", rows, rejected, facts)
    return tmp_path / "dataset"


def test_every_config_loads(written: Path, rows: Rows, tmp_path: Path) -> None:
    default = load(written, None, tmp_path / "cache")
    assert default.column_names == list(AUDIT_COLUMNS)
    assert default.to_list() == rows
    assert len(load(written, "messages", tmp_path / "cache")) == len(rows)
    assert len(load(written, "prompt_completion", tmp_path / "cache")) == len(rows)
    assert set(load(written, "rejected", tmp_path / "cache")["reason"]) == {"below threshold"}


def test_folders_of_the_same_name_do_not_share_the_cache(
    written: Path, rows: Rows, rejected: Rows, facts: CardFacts, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "dataset"
    write_dataset(other, rows[:2], rejected, facts)
    assert len(load(written, "messages", tmp_path / "cache")) == len(rows)
    assert len(load(other, "messages", tmp_path / "cache")) == 2


def test_training_configs_hold_the_turns_that_afdc_trains_on(
    written: Path, rows: Rows, facts: CardFacts, tmp_path: Path
) -> None:
    chat = load(written, "messages", tmp_path / "cache")[0]
    assert [turn["role"] for turn in chat["messages"]] == ["system", "user", "assistant"]
    assert chat["messages"][0]["content"] == system_prompt(facts.task)
    assert chat["messages"][2]["content"] == rows[0]["label"]
    pair = load(written, "prompt_completion", tmp_path / "cache")
    assert pair.column_names == ["prompt", "completion", "class_label"], "a label column would mean preferences to TRL"
    assert pair[0]["prompt"] + pair[0]["completion"] == chat["messages"]


def test_without_rejected_rows_the_card_offers_none(tmp_path: Path, rows: Rows, facts: CardFacts) -> None:
    write_dataset(tmp_path / "dataset", rows, [], facts)
    with pytest.raises(ValueError, match=r"'default', 'messages', 'prompt_completion'"):
        load(tmp_path / "dataset", "rejected", tmp_path / "cache")
    assert len(load(tmp_path / "dataset", "messages", tmp_path / "cache")) == len(rows)


def test_the_same_rows_give_the_same_bytes(
    written: Path, tmp_path: Path, rows: Rows, rejected: Rows, facts: CardFacts
) -> None:
    write_dataset(tmp_path / "again", iter(rows), iter(rejected), facts)
    assert hashes(written) == hashes(tmp_path / "again")


def test_manifest_lists_every_file_with_its_rows(written: Path, facts: CardFacts) -> None:
    manifest = read_summary(written)
    assert set(manifest["files"]) == set(hashes(written)) - {"manifest.json"}
    assert manifest["files"]["data/train-00000.parquet"]["rows"] == 46
    assert manifest["files"]["rejected/train-00000.parquet"]["rows"] == 7
    assert manifest["adapter"] == facts.adapter
    verify_dataset(written)
    (written / "data/train-00000.parquet").write_bytes(b"torn")
    with pytest.raises(StorageError, match="manifest"):
        verify_dataset(written)


def test_job_yaml_holds_the_resolved_config(written: Path, facts: CardFacts) -> None:
    run = yaml.safe_load((written / "job.yaml").read_text())["run"]
    assert run.pop("task") == "task.json"
    assert RunConfig.model_validate(run) == facts.config


def test_job_yaml_names_the_commit_of_a_hub_model_and_the_files(tmp_path: Path, rows: Rows, facts: CardFacts) -> None:
    commit = "0123456789" * 4
    hub = replace(facts, model="Qwen/Qwen3-4B", model_revision=commit, unlabeled=True)
    write_dataset(tmp_path / "d", rows, [], hub)
    assert file_layer(tmp_path / "d" / "job.yaml").values["model"] == f"Qwen/Qwen3-4B@{commit}"
    flags = "--config job.yaml --seeds SEEDS --eval GOLD --unlabeled TEXTS --out NEW"
    assert flags in (tmp_path / "d" / "job.yaml").read_text()
    local = replace(facts, model="/models/mine", model_revision="f" * 64, eval=EvalSummary())
    write_dataset(tmp_path / "e", rows, [], local)
    assert file_layer(tmp_path / "e" / "job.yaml").values["model"] == "/models/mine"
    assert "--seeds SEEDS --out NEW" in (tmp_path / "e" / "job.yaml").read_text()


def test_writing_the_same_again_changes_nothing_and_other_rows_are_refused(
    written: Path, rows: Rows, rejected: Rows, facts: CardFacts
) -> None:
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    write_dataset(written, rows, rejected, facts)
    with pytest.raises(ConflictError, match="other rows"):
        write_dataset(written, rows[:-1], rejected, facts)
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before
    assert [path.name for path in written.parent.iterdir()] == ["dataset"]


def test_a_foreign_folder_is_never_replaced(tmp_path: Path, rows: Rows, facts: CardFacts) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.txt").write_text("keep")
    with pytest.raises(ConflictError, match="not a data set"):
        write_dataset(tmp_path / "dataset", rows, [], facts)
    assert (tmp_path / "dataset" / "mine.txt").read_text() == "keep"


def test_a_failure_in_the_stream_leaves_nothing(tmp_path: Path, rows: Rows, facts: CardFacts) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield from rows
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="No space left"):
        write_dataset(tmp_path / "dataset", broken(), [], facts)
    assert list(tmp_path.iterdir()) == []


def test_left_overs_of_a_killed_run_do_not_matter(tmp_path: Path, rows: Rows, facts: CardFacts) -> None:
    (tmp_path / ".dataset.tmp" / "data").mkdir(parents=True)
    (tmp_path / ".dataset.tmp" / "data" / "train-00000.parquet").write_bytes(b"half")
    assert write_dataset(tmp_path / "dataset", rows, [], facts).rows == len(rows)


def test_a_row_without_a_column_is_refused(tmp_path: Path, rows: Rows, facts: CardFacts) -> None:
    del rows[3]["scorer"]
    with pytest.raises(KeyError, match="scorer"):
        write_dataset(tmp_path / "dataset", rows, [], facts)


def test_summary_counts(tmp_path: Path, rows: Rows, rejected: Rows, facts: CardFacts) -> None:
    summary = write_dataset(tmp_path / "dataset", rows, rejected, facts)
    assert (summary.rows, summary.rejected) == (46, 7)
    assert summary.per_source == {"generated": 40, "seed": 6}
    assert sum(summary.per_label.values()) == 46
    assert summary.reasons == {"below threshold": 7}


def test_rows_go_to_several_files(
    tmp_path: Path, rows: Rows, facts: CardFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "ROW_GROUP_ROWS", 10)
    monkeypatch.setattr(dataset, "FILE_ROWS", 20)
    write_dataset(tmp_path / "dataset", rows, [], facts)
    files = sorted((tmp_path / "dataset" / "data").iterdir())
    assert [pq.read_metadata(path).num_rows for path in files] == [20, 20, 6]
    assert load(tmp_path / "dataset", None, tmp_path / "cache")["id"][:] == [row["id"] for row in rows]


def test_memory_stays_flat(tmp_path: Path, row: Callable[..., dict[str, Any]], facts: CardFacts) -> None:
    """Ten times the rows may not cost ten times the memory: at most 40 MiB more at 60,000 rows than at 6,000."""
    write_dataset(tmp_path / "small", (row(i) for i in range(6_000)), [], facts)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_dataset(tmp_path / "large", (row(i) for i in range(60_000)), [], facts)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 1024

"""What a task file and examples may say when answers are free text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afdc.config import AnswerConfig, RunConfig
from afdc.errors import InputError, UsageError
from afdc.inputs import read_examples, read_task
from afdc.presets import build_config, config_hash
from afdc.seeds import check_seeds
from afdc.task import Task
from afdc_pipeline import holdout
from afdc_server.local.request import RunRequest, check_request
from tests.fakes.open_job import open_seeds

TASK = Task(instruction="Name the product.", labels=None)


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_labels_null_makes_a_task_open_and_has_to_be_said(tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    path.write_text('{"instruction": "Name the product.", "labels": null}')
    assert read_task(path) == TASK
    assert TASK.is_open
    assert TASK.names == ()
    path.write_text('{"instruction": "Name the product."}')
    with pytest.raises(InputError, match="labels"):
        read_task(path)


def test_answers_are_any_text_in_its_normal_form(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", [{"text": "a", "label": " Cafe\u0301 "}, {"text": "b", "label": "two\nlines"}])
    report = check_seeds(read_examples(path, TASK), TASK)
    assert [one.label for one in report.examples] == ["Caf\u00e9", "two\nlines"]
    assert report.counts == {}


def test_a_text_with_two_answers_names_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", [{"text": "a b", "label": "x"}, {"text": "a  b", "label": "y"}])
    with pytest.raises(InputError, match="on line 1"):
        check_seeds(read_examples(path, TASK), TASK)


@pytest.mark.parametrize("answer", ["", "   ", "\u200b"])
def test_an_empty_answer_is_refused(tmp_path: Path, answer: str) -> None:
    path = write(tmp_path / "s.jsonl", [{"text": "a", "label": answer}])
    with pytest.raises(InputError, match="empty") as raised:
        read_examples(path, TASK)
    assert raised.value.line == 1


@pytest.mark.parametrize("setting", [{"per_label": 3}, {"combine": True}])
def test_settings_that_need_labels_are_refused(tmp_path: Path, setting: dict[str, object]) -> None:
    task = tmp_path / "task.json"
    task.write_text(TASK.model_dump_json())
    seeds = write(tmp_path / "s.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    request = RunRequest(seeds, tmp_path / "out", build_config("default", {"select": setting}), task=task)
    with pytest.raises(UsageError, match="needs labels"):
        check_request(request)


def test_seeds_are_held_out_together() -> None:
    held = holdout.split(open_seeds(10), 0.2, 0, by_label=False)
    assert sum(seed.holdout for seed in held) == 2


def test_the_section_counts_only_where_it_differs() -> None:
    assert config_hash(RunConfig()) == config_hash(RunConfig(answer=AnswerConfig()))
    assert config_hash(RunConfig()) != config_hash(RunConfig(answer=AnswerConfig(samples=5)))

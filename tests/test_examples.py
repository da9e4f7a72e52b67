"""The example seed sets are valid, balanced, and nothing of the gold set is among the seeds."""

from __future__ import annotations

from collections import Counter
from difflib import SequenceMatcher
from pathlib import Path

import pytest

from afdc.inputs import read_examples, read_task
from afdc.seeds import check_seeds

EXAMPLES = Path(__file__).parent.parent / "examples"
FOLDERS = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
OPEN = ["product_names"]


@pytest.mark.parametrize("name", sorted(set(FOLDERS) - set(OPEN)))
def test_example_is_usable(name: str) -> None:
    task = read_task(EXAMPLES / name / "task.json")
    seeds = read_examples(EXAMPLES / name / "seeds.jsonl", task)
    gold = read_examples(EXAMPLES / name / "eval.jsonl", task)
    report = check_seeds(seeds, task)
    assert set(report.counts.values()) == {8}
    assert report.duplicates == 0
    assert set(Counter(example.label for example in gold).values()) == {12}
    assert max(SequenceMatcher(None, a.text, b.text).ratio() for a in seeds for b in gold) < 0.7


@pytest.mark.parametrize("name", OPEN)
def test_open_example_is_usable(name: str) -> None:
    task = read_task(EXAMPLES / name / "task.json")
    seeds = read_examples(EXAMPLES / name / "seeds.jsonl", task)
    gold = read_examples(EXAMPLES / name / "eval.jsonl", task)
    report = check_seeds(seeds, task)
    assert task.is_open
    assert (len(report.examples), report.duplicates, len(gold)) == (20, 0, 40)
    assert not {example.label for example in seeds} & {example.label for example in gold}
    assert max(SequenceMatcher(None, a.text, b.text).ratio() for a in seeds for b in gold) < 0.7


def test_there_is_a_chinese_one() -> None:
    assert {"support_tickets", "zh_reviews"} <= set(FOLDERS)

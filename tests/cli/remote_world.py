"""The files of a small job for remote commands, and how it is submitted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.fakes.job import TASK, make_seeds

Outcome = tuple[int, str, str]
Remote = Callable[..., Outcome]
SMALL = (
    "--variants",
    "6",
    "--augment-rounds",
    "2",
    "--rounds",
    "2",
    "--set",
    "loop.members=2",
    "--set",
    "loop.folds=0",
    "--set",
    "loop.min_flip_rate=0",
)
SUBMIT = ("submit", "--seeds", "seeds.jsonl", "--task", "task.json", *SMALL)


def write_inputs(folder: Path) -> None:
    rows = [{"text": seed.text, "label": seed.label} for seed in make_seeds(4)]
    gold = [{"text": f"gold {seed.text} {seed.label}", "label": seed.label} for seed in make_seeds(2)]
    texts = [f"found {seed.text} {seed.label}" for seed in make_seeds(3)]
    (folder / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gold))
    (folder / "texts.txt").write_text("\n".join(texts))
    (folder / "task.json").write_text(TASK.model_dump_json())

"""Labels of generated texts, by a model trained on all the gold labels of the task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from afdc.presets import build_config
from afdc.task import Example
from afdc_pipeline import metrics, scoring
from afdc_pipeline.seams import FloatArray
from benchmarks.quality.bench import Bench, Case, hard_row
from benchmarks.quality.encoder import head_probs
from benchmarks.quality.tasks import shuffled

JUDGE_SEED = 4242


@dataclass(frozen=True)
class Judged:
    """Labels by text, and the judge's own accuracy on the test rows: no precision can be told better than that."""

    labels: dict[str, str]
    judge: dict[str, Any]


async def judge(bench: Bench, case: Case, texts: Sequence[str]) -> Judged | None:
    """Label texts; None where the options ask for no judge."""
    kind = bench.options.judge
    if kind == "none":
        return None
    everything = [*texts, *case.test_texts]
    probs = await _lora(bench, case, everything) if kind == "lora" else _encoder(bench, case, everything)
    predicted, names = scoring.labels(probs), case.task.task.names
    accuracy = metrics.accuracy(case.gold_labels, predicted[len(texts) :])
    labels = {text: names[label] if label >= 0 else "" for text, label in zip(texts, predicted, strict=False)}
    return Judged(labels, {"kind": kind, "accuracy": accuracy, "rows": len(_gold(bench, case))})


def _gold(bench: Bench, case: Case) -> list[Example]:
    rows = shuffled(case.task.train, JUDGE_SEED)
    return rows[: bench.options.judge_rows or None]


async def _lora(bench: Bench, case: Case, texts: Sequence[str]) -> FloatArray:
    """The default training settings, whatever the case's are: one judge for all methods and draws of a task."""
    task = case.task.task
    rows = [hard_row(task, row) for row in _gold(bench, case)]
    folder = bench.options.work / "judges" / case.task.digest[:16]
    adapter = await bench.fit(task, rows, build_config(), folder, bench.options.judge_epochs, JUDGE_SEED)
    return await bench.probs_of(adapter, texts, task)


def _encoder(bench: Bench, case: Case, texts: Sequence[str]) -> FloatArray:
    names = case.task.task.names
    rows = _gold(bench, case)
    vectors = bench.encoder.encode([row.text for row in rows])
    labels = [names.index(row.label or "") for row in rows]
    return head_probs(vectors, labels, bench.encoder.encode(texts), len(names))

"""From `rows.jsonl` to token ids, and the order in which rows are trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from afdc.errors import InputError
from afdc.prompting import PromptCodec
from afdc.task import Task
from afdc.training import TrainJob, TrainRow, inputs_digest

MIN_TARGET = 0.02


@dataclass(frozen=True, slots=True)
class Branch:
    """One answer to a prompt: the ids to predict, and what each of their log-likelihoods counts in the loss."""

    ids: tuple[int, ...]
    coef: float


@dataclass(frozen=True, slots=True)
class Example:
    """What follows the shared prefix (text and suffix ids), and the answers trained on or scored there.

    Attributes:
        label: the row's most probable label; None for a row of an open task and for one that is only scored.
        weight: of the row in the contrastive loss; the branches' coefficients have it in them already.
    """

    prompt: tuple[int, ...]
    branches: tuple[Branch, ...]
    label: int | None = None
    weight: float = 1.0

    @property
    def tokens(self) -> int:
        """Positions that this example adds to a pack; an answer's last id is only ever predicted."""
        return len(self.prompt) + sum(len(branch.ids) - 1 for branch in self.branches)


def identify(job: TrainJob) -> str:
    """`inputs_digest` of the job. Raises InputError: the rows cannot be read."""
    try:
        return inputs_digest(job)
    except OSError as exc:
        raise InputError(f"cannot be read: {exc}", path=str(job.rows)) from exc


def read_rows(job: TrainJob) -> list[TrainRow]:
    """Rows with a positive weight.

    Raises:
        InputError: a line is not a TrainRow, a target is no label of the task, or nothing is left to train on.
    """
    rows = []
    try:
        with job.rows.open(encoding="utf-8") as stream:
            for line, text in enumerate(stream, start=1):
                if text.strip():
                    rows.append(_parse_row(job, line, text))
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"cannot be read: {exc}", path=str(job.rows)) from exc
    rows = [row for row in rows if row.weight > 0]
    if not rows:
        raise InputError("there is no row with a positive weight", path=str(job.rows), remedy="Select at least one row")
    return rows


def _parse_row(job: TrainJob, line: int, text: str) -> TrainRow:
    try:
        row = TrainRow.model_validate_json(text)
    except ValidationError as exc:
        raise InputError(f"not a training row: {exc}", path=str(job.rows), line=line) from exc
    problem = _row_problem(row, job.task)
    if problem:
        raise InputError(problem, path=str(job.rows), line=line)
    return row


def _row_problem(row: TrainRow, task: Task) -> str | None:
    """Why a row cannot be trained on, or None."""
    if task.is_open != (row.completion is not None):
        return f"a row of this task needs {'a completion' if task.is_open else 'targets'}"
    wrong = [label for label in row.targets if not 0 <= label < len(task.names)]
    total = sum(row.targets.values(), start=float(task.is_open))
    if wrong or min(row.targets.values(), default=0) < 0 or not 0 < total < math.inf:
        return f"targets {row.targets} are no distribution over {len(task.names)} labels"
    return None if math.isfinite(row.weight) else f"the weight is {row.weight}"


def hard_targets(targets: dict[int, float]) -> dict[int, float]:
    """Targets of at least MIN_TARGET after normalisation (always the largest), normalised again, by label."""
    total = sum(targets.values())
    best = max(targets, key=lambda label: (targets[label], -label))
    kept = {label: p / total for label, p in sorted(targets.items()) if p / total >= MIN_TARGET or label == best}
    share = sum(kept.values())
    return {label: p / share for label, p in kept.items()}


def encode_row(codec: PromptCodec, row: TrainRow, max_tokens: int) -> Example:
    """Ids of a row. A completion's loss is the mean over its tokens and the terminator, so a long one counts no more.

    Raises:
        InputError: prompt and longest completion exceed `max_tokens`.
    """
    prompt = (*codec.text_ids(row.text), *codec.suffix_ids)
    branches = [Branch(ids, row.weight * share / len(ids)) for ids, share in _completions(codec, row)]
    have = len(codec.prefix_ids) + len(prompt) + max(len(branch.ids) for branch in branches)
    if have > max_tokens:
        raise InputError(
            f"the text {row.text[:60]!r} needs {have} tokens with its label or answer and {max_tokens} fit",
            remedy="Shorten it or raise engine.max_model_len",
        )
    return Example(prompt, tuple(branches), top_label(row), row.weight)


def top_label(row: TrainRow) -> int | None:
    """The most probable label, the first of equals; None for a row of an open task."""
    return max(row.targets, key=lambda label: (row.targets[label], -label)) if row.targets else None


def _completions(codec: PromptCodec, row: TrainRow) -> list[tuple[tuple[int, ...], float]]:
    """Ids of each completion trained on, and its share of the row."""
    if row.completion is not None:
        return [(tuple(codec.answer_ids(row.completion)), 1.0)]
    return [(tuple(codec.completion_ids(label)), share) for label, share in hard_targets(row.targets).items()]


def schedule(rows: Sequence[TrainRow], job: TrainJob) -> list[list[int]]:
    """Row indices of every optimiser step of the run: each epoch is a fresh shuffle, gold rows repeated.

    Rows are packed without padding, so batches need no sorting by length and every shuffle is uniform. With the
    contrastive loss the shuffle is one of pairs of the same label: where there are many labels, a batch would else
    hold hardly two rows of one.
    """
    entries = np.repeat(np.arange(len(rows)), [job.gold_repeat if row.gold else 1 for row in rows])
    labels = [top_label(row) for row in rows] if job.config.contrastive else []
    steps: list[list[int]] = []
    for epoch in range(job.epochs):
        rng = np.random.default_rng([job.seed, epoch])
        order = rng.permutation(entries).tolist()
        steps += list(batches(paired(order, labels, rng) if labels else order, job.config.batch_size))
    return steps


def paired(order: Sequence[int], labels: Sequence[int | None], rng: np.random.Generator) -> list[int]:
    """The same entries, those of one label two by two, the pairs shuffled; an odd one stands alone."""
    open_pairs: dict[int | None, list[int]] = {}
    pairs: list[list[int]] = []
    for row in order:
        pair = open_pairs.pop(labels[row], None)
        if pair is None:
            pair = open_pairs[labels[row]] = []
            pairs.append(pair)
        pair.append(row)
    return [row for place in rng.permutation(len(pairs)).tolist() for row in pairs[place]]


def batches(order: Sequence[int], size: int) -> Iterator[list[int]]:
    """The order in parts of `size`, the last one shorter."""
    for start in range(0, len(order), size):
        yield list(order[start : start + size])

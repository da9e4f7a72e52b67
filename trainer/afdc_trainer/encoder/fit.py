"""Tune the encoder on labelled rows, and say of other texts how likely each label is.

The contrastive stage of SetFit (Tunstall et al. 2022, arXiv 2209.11055), by the supervised contrastive loss over whole
batches instead of pairs, then logistic regression on the tuned vectors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from afdc.config import EncoderConfig
from afdc.encoding import EncoderFit, EncoderJob
from afdc.errors import InputError
from afdc.files import atomic_writer
from afdc.training import TrainRow
from afdc_trainer.contrast import contrastive_loss
from afdc_trainer.data import batches, paired, top_label
from afdc_trainer.encoder.model import SentenceEncoder, Vectors

WARMUP = 0.1
WEIGHT_DECAY = 0.01
INVERSE_PENALTY = 10.0
"""scikit-learn's C. At its 1, of many labels one of three rows drowns one of two (docs/quality.md, eighth series)."""
ABSENT = 1e-3  # probability of a label that no row has: no head can know it
READ_TEXTS = 4096


@dataclass(frozen=True)
class Rows:
    """What is learnt from: texts, their labels int64 [n], weights float32 [n], and times each enters an epoch [n]."""

    texts: list[str]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    repeats: NDArray[np.int64]


def run_fit(job: EncoderJob, fit: EncoderFit) -> None:
    """Tune on the fit's rows and write the label log-probs of its texts."""
    rows = read_rows(fit)
    torch.manual_seed(fit.seed)
    encoder = SentenceEncoder(job.encoder, job.config)
    tune(encoder, rows, job.config, fit.epochs, fit.seed)
    head = Head(encoder.encode(rows.texts), rows, job.labels)
    write_scores(fit, job.labels, (head.logprobs(encoder.encode(part)) for part in read_texts(fit.texts)))


def read_rows(fit: EncoderFit) -> Rows:
    """The rows with a positive weight. Raises InputError: none has one."""
    with fit.rows.open("rb") as stream:
        rows = [row for row in map(TrainRow.model_validate_json, stream) if row.weight > 0]
    if not rows:
        raise InputError("there is no row with a positive weight", path=str(fit.rows), remedy="Select at least one row")
    return Rows(
        [row.text for row in rows],
        np.array([top_label(row) for row in rows], dtype=np.int64),
        np.array([row.weight for row in rows], dtype=np.float32),
        np.array([fit.gold_repeat if row.gold else 1 for row in rows], dtype=np.int64),
    )


def tune(encoder: SentenceEncoder, rows: Rows, config: EncoderConfig, epochs: int, seed: int) -> None:
    """Contrastive epochs over the rows, in batches shuffled in pairs of a label; linear warm-up and decay."""
    steps = list(steps_of(rows, config.batch_size, epochs, seed))
    if not steps:
        return
    parameters = encoder.model.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, len(steps)))
    encoder.model.train()
    for batch in steps:
        where = torch.from_numpy(batch).to(encoder.device)
        states = encoder.states([rows.texts[at] for at in batch])
        labels, weights = (torch.from_numpy(one[batch]).to(encoder.device) for one in (rows.labels, rows.weights))
        loss = contrastive_loss(states, labels, where, weights, config.temperature)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        optimizer.step()
        rate.step()


def steps_of(rows: Rows, size: int, epochs: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Row indices of every optimiser step."""
    entries = np.repeat(np.arange(len(rows.texts)), rows.repeats)
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, epoch])
        order = paired(rng.permutation(entries).tolist(), rows.labels.tolist(), rng)
        yield from (np.array(batch, dtype=np.int64) for batch in batches(order, size))


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step: up over the first tenth, then down to 0."""
    return min((step + 1) / max(1.0, WARMUP * steps), (steps - step) / max(1.0, (1 - WARMUP) * steps), 1.0)


class Head:
    """Logistic regression over unit vectors (scikit-learn)."""

    def __init__(self, vectors: Vectors, rows: Rows, n_labels: int) -> None:
        from sklearn.linear_model import LogisticRegression  # takes a second to import

        self._n_labels = n_labels
        self._present = np.unique(rows.labels)
        self._model = None
        if len(self._present) > 1:
            model = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000)
            self._model = model.fit(vectors, rows.labels, sample_weight=rows.weights * rows.repeats)

    def logprobs(self, vectors: Vectors) -> NDArray[np.float32]:
        """float32 [n, n_labels], nats, each row a distribution."""
        probs = np.full((len(vectors), self._n_labels), ABSENT)
        probs[:, self._present] = self._model.predict_proba(vectors) if self._model is not None else 1.0
        logprobs: NDArray[np.float32] = np.log(probs / probs.sum(axis=1, keepdims=True)).astype(np.float32)
        return logprobs


def read_texts(path: Path) -> Iterator[list[str]]:
    """The texts, some thousand at a time."""
    part: list[str] = []
    with path.open("rb") as stream:
        for line in stream:
            part.append(json.loads(line))
            if len(part) == READ_TEXTS:
                yield part
                part = []
    if part:
        yield part


def write_scores(fit: EncoderFit, n_labels: int, parts: Iterator[NDArray[np.float32]]) -> None:
    """Write the parts as one .npy file, durably, one in memory at a time."""
    with fit.texts.open("rb") as stream:
        count = sum(1 for _ in stream)
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, n_labels)}
    with atomic_writer(fit.scores) as out:
        np.lib.format.write_array_header_1_0(out, header)  # type: ignore[no-untyped-call]  # numpy leaves it bare
        for part in parts:
            out.write(part.astype("<f4").tobytes())

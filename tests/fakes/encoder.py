"""An encoder that tunes nothing: it finds the label's name in the text, with seeded noise. Lives in tests only."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from afdc.encoding import EncoderFit, EncoderJob, EncoderResult, encoding_digest
from afdc.files import atomic_writer, sha256_file, write_json
from afdc.task import Task
from afdc_pipeline.seams import EncoderInfo
from tests.fakes.engine import stable_rng

UNTUNED = " as it is"
INFO = EncoderInfo("fake-encoder", Path("/nonexistent/encoder"), "rev-e")


@dataclass(frozen=True)
class Seen:
    """One fit as the encoder was given it: the loop leaves none of its files."""

    rows: frozenset[str]
    texts: tuple[str, ...]
    seed: int
    tuned: bool


class FakeEncoder:
    """Scores follow from the text and from the rows that the fit was given."""

    def __init__(self, task: Task, info: EncoderInfo = INFO, on_call: Callable[[str], None] | None = None) -> None:
        self.info = info
        self.jobs: dict[str, list[Seen]] = {}
        self._names: Sequence[str] = task.names
        self._on_call = on_call or (lambda _: None)

    async def label(self, job: EncoderJob) -> EncoderResult:
        self._on_call(f"encode:{job.name}")
        self.jobs[job.name] = [_look(fit) for fit in job.fits]
        for fit in job.fits:
            self._fit(fit)
        hashes = {fit.scores.name: sha256_file(fit.scores) for fit in job.fits}
        result = EncoderResult(status="succeeded", inputs=encoding_digest(job), scores=hashes)
        write_json(job.result, result.model_dump(mode="json"))
        return result

    def _fit(self, fit: EncoderFit) -> None:
        learnt = sha256_file(fit.rows) + ("" if fit.epochs else UNTUNED)
        with fit.texts.open("rb") as lines:
            rows = [self._score(json.loads(line), learnt, fit.seed) for line in lines]
        table = np.array(rows, dtype=np.float32).reshape(len(rows), len(self._names))
        with atomic_writer(fit.scores) as stream:
            np.save(stream, table)

    def _score(self, text: str, learnt: str, seed: int) -> np.ndarray:  # type: ignore[type-arg]
        noise = stable_rng(text, learnt, seed).normal(0, 1, len(self._names))
        logits = noise + [3.0 if name.casefold() in text.casefold() else 0.0 for name in self._names]
        return np.asarray(logits - np.log(np.exp(logits).sum()))


def _look(fit: EncoderFit) -> Seen:
    rows = [json.loads(line)["text"] for line in fit.rows.read_bytes().splitlines()]
    texts = [json.loads(line) for line in fit.texts.read_bytes().splitlines()]
    return Seen(frozenset(rows), tuple(texts), fit.seed, fit.epochs > 0)

"""Label D1 with a sentence encoder that learns from the same rows as the round's adapter.

Adapters of one base model err alike, whatever their training seed; an encoder of another kind errs elsewhere, so that
the two together are right more often than either (co-training: Blum and Mitchell 1998; for labels of language models:
FreeAL, arXiv 2311.15614). It is tuned once on all rows, and once a fold without it. A text that it was tuned on is
labelled by the fold that leaves it out, so it never confirms itself. The seeds, out of fold, say two things of it: in
round 0, for the whole job, whether a head on the encoder as it is tells them clearly better than the tuned one; and in
every round its temperature, so that one that does not know the language or the task is flattened until it says nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from afdc.encoding import EncoderFit, EncoderJob
from afdc.files import atomic_writer
from afdc.result import Evaluation
from afdc.training import RESULT_FILE, ROWS_FILE
from afdc_pipeline import metrics, scoring
from afdc_pipeline.context import JobContext
from afdc_pipeline.holdout import Fold
from afdc_pipeline.learning import name_rows
from afdc_pipeline.pool import Pool, PoolChunk
from afdc_pipeline.rows import Candidate
from afdc_pipeline.seams import Encoder, FloatArray, StageKey
from afdc_pipeline.stages.crossfit import seed_folds
from afdc_pipeline.stages.decide import decided_rows
from afdc_pipeline.stages.fit import labelled_rows, seed_rows, write_rows
from afdc_pipeline.stages.reading import Scorer
from afdc_pipeline.stages.runner import StageRun, chunks_digest, run_stage

TEXTS_FILE, SCORES_FILE = "texts.jsonl", "scores.npy"
ENCODER = "e"  # how the short names of encoders begin
ENCODE_STAGE = f"score-{ENCODER}"  # how the names of these stages begin
NOBODY = -1
FIT_SEEDS = 70  # behind the numbers that distinguish the adapters of a round


@dataclass(frozen=True)
class _Part:
    """One fit of a round: what it leaves out, and its files."""

    fold: Fold
    fit: EncoderFit


def encoder_of(ctx: JobContext, encoder: Encoder, round: int, decided: StageKey | None) -> Scorer:
    """The round's encoder as a labeller, not tuned yet.

    Args:
        decided: the decisions whose rows it learns from beside the seeds; None in round 0.
    """
    crossed = bool(seed_folds(ctx))
    name, served = f"{ENCODER}{round}", f"{encoder.info.name}-{ENCODER}{round}"
    return Scorer(name, served, decided, out_of_sample=crossed, born=round, view="encoder")


def encoder_of_fold(ctx: JobContext, encoder: Encoder, fold: Fold) -> Scorer:
    """The encoder of round 0 that leaves a fold of the seeds out, as a labeller of the texts that the fold keeps."""
    name = f"{ENCODER}0-f{fold.number}-in"
    return Scorer(name, f"{encoder.info.name}-{name}", fold=fold, inside=True, view="encoder")


@dataclass(frozen=True)
class Encoded:
    """What an encoder said: `key` is the stage of its log-probs, divided by `temperature`.

    Attributes:
        tuned: it was tuned, not taken as it is.
        evaluation: how well its folds tell the seeds that they left out; None without folds.
    """

    key: StageKey
    temperature: float
    tuned: bool
    evaluation: Evaluation | None


async def encode_pool(
    ctx: JobContext,
    encoder: Encoder,
    round: int,
    pool: Pool,
    scorer: Scorer,
    known: Encoded | None = None,
    part: str = "",
    first: int = 0,
) -> Encoded:
    """Tune the encoder and label D1. Nothing of it is kept: for a pool that has grown it is tuned again, the same.

    Args:
        scorer: as of `encoder_of` or `encoder_of_fold`, which is fitted once, without that fold.
        known: that of round 0, whose folds know nothing at all of the seeds left out: it decides whether the encoder is
            tuned, and its temperature is the lowest, and that of a fold. None in round 0 itself.
        part: names the stage of a pool that has grown; "" for the whole pool.
        first: index of the first chunk that it has not labelled.
    """
    key, chunks, decided = StageKey(round, f"score-{scorer.name}{part}"), pool.chunks()[first:], scorer.trained_on
    folder = ctx.layout.rounds / f"{scorer.name}{part}"
    coldest = known.temperature if known is not None else 0.0

    async def body(run: StageRun) -> dict[str, Any]:
        parts = _parts(ctx, folder, scorer)
        for one in parts:
            _write_rows(ctx, one, pool, decided)
        placed = _write_texts(ctx, parts, pool, chunks, scorer)
        ways = _ways(ctx, parts, known)
        await _label(ctx, encoder, f"{ctx.job}-{scorer.name}{part}", folder, [one.fit for way in ways for one in way])
        scores = [[_scores(one, placed.count(number)) for number, one in enumerate(way)] for way in ways]
        told = [_calibrate(ctx, way[1:], found[1:], coldest) for way, found in zip(ways, scores, strict=True)]
        best = int(len(told) > 1 and metrics.clearly_lower(told[1].losses, told[0].losses))
        temperature, evaluation = told[best].temperature, told[best].evaluation
        reader = _Reader(parts, scores[best], placed, temperature)
        for chunk in chunks:
            rows = reader.rows(chunk.size)
            if chunk.index not in run.done:
                run.put(chunk.index, rows)
        return {
            "temperature": temperature,
            "tuned": ways[best][0].fit.epochs > 0,
            "evaluation": None if evaluation is None else evaluation.model_dump(),
        }

    inputs = {
        "pool": pool.digest,
        "encoder": encoder.info.revision,
        "rows": chunks_digest(ctx, decided) if decided else "",
        "first": first,
        "coldest": coldest,
        "tuned": None if known is None else known.tuned,
    }
    total = sum(chunk.size for chunk in chunks)
    result = await run_stage(ctx, key, inputs, body, title=f"label D1 with {scorer.title}", total=total)
    shutil.rmtree(folder, ignore_errors=True)  # what it said is in the ledger; a copy costs gigabytes at scale
    found = result["evaluation"]
    evaluation = None if found is None else Evaluation.model_validate(found)
    return Encoded(key, result["temperature"], result["tuned"], evaluation)


def _ways(ctx: JobContext, parts: Sequence[_Part], known: Encoded | None) -> list[Sequence[_Part]]:
    """The parts tuned, the parts as they are, or first these and then those: of the same rows and texts."""
    as_is = [replace(part, fit=_untuned(part.fit)) for part in parts]
    if known is not None:
        return [parts if known.tuned else as_is]
    return [parts, as_is] if len(parts) > 1 and ctx.config.encoder.compare_untuned else [parts]


def _untuned(fit: EncoderFit) -> EncoderFit:
    return fit.model_copy(update={"epochs": 0, "scores": fit.scores.with_name(f"untuned-{fit.scores.name}")})


def _whole(ctx: JobContext) -> Fold:
    return Fold(ctx.inputs.training_seeds, ())


def _parts(ctx: JobContext, folder: Path, scorer: Scorer) -> list[_Part]:
    """The fits of an encoder: on all seeds and without each fold; of a fold's encoder the one without it."""
    folds = enumerate([_whole(ctx), *seed_folds(ctx)])
    return [_part(ctx, folder, scorer.born, number, fold) for number, fold in folds if scorer.fold in (None, fold)]


def _part(ctx: JobContext, folder: Path, round: int, number: int, fold: Fold) -> _Part:
    place, config = folder / f"fit{number}", ctx.config.encoder
    fit = EncoderFit(
        rows=place / ROWS_FILE,
        texts=place / TEXTS_FILE,
        scores=folder / f"{number}-{SCORES_FILE}",
        epochs=config.epochs if round else config.seed_epochs,
        gold_repeat=ctx.config.train.seed_repeat if round else 1,
        seed=ctx.config.seed * 1000 + round * 100 + FIT_SEEDS + number,
    )
    return _Part(fold, fit)


def _write_rows(ctx: JobContext, part: _Part, pool: Pool, decided: StageKey | None) -> None:
    names = name_rows(ctx.task, ctx.config.encoder.name_repeat)
    rows = labelled_rows(ctx, pool, decided, part.fold) if decided else seed_rows(ctx, part.fold.train)
    write_rows(part.fit.rows, chain(names, rows))


def _write_texts(
    ctx: JobContext, parts: Sequence[_Part], pool: Pool, chunks: Sequence[PoolChunk], scorer: Scorer
) -> list[int]:
    """The texts that each part labels: first its held seeds, then candidates. Returns each one's part, or NOBODY."""
    placed: list[int] = []
    skipped = sum(chunk.size for chunk in pool.chunks()[: len(pool.chunks()) - len(chunks)])
    with ExitStack() as stack:
        streams = [stack.enter_context(atomic_writer(part.fit.texts)) for part in parts]
        for stream, part in zip(streams, parts, strict=True):
            stream.writelines(_line(seed.text) for seed in part.fold.held)
        for candidate, trained in islice(_trained(ctx, pool, scorer.trained_on), skipped, None):
            asked = scorer.asked_about(candidate)
            placed.append((_part_of(candidate, parts) if trained else 0) if asked else NOBODY)
            if asked:
                streams[placed[-1]].write(_line(candidate.text))
    return placed


def _line(text: str) -> bytes:
    return json.dumps(text).encode() + b"\n"


def _trained(ctx: JobContext, pool: Pool, decided: StageKey | None) -> Iterator[tuple[Candidate, bool]]:
    """Every candidate, and whether it is a row of D2."""
    if decided is None:
        yield from ((candidate, False) for chunk in pool.chunks() for candidate in pool.read(chunk))
    else:
        yield from ((candidate, row["keep"]) for candidate, row in decided_rows(ctx, pool, decided))


def _part_of(candidate: Candidate, parts: Sequence[_Part]) -> int:
    """The part whose fold leaves the text out; the whole one where none does."""
    return next((number for number, part in enumerate(parts) if number and part.fold.leaves_out(candidate)), 0)


async def _label(ctx: JobContext, encoder: Encoder, name: str, folder: Path, fits: Sequence[EncoderFit]) -> None:
    job = EncoderJob(
        name=name,
        encoder=encoder.info.path,
        revision=encoder.info.revision,
        labels=len(ctx.task.names),
        config=ctx.config.encoder,
        fits=tuple(fits),
        result=folder / RESULT_FILE,
    )
    await ctx.engine.lend_device()
    try:
        await encoder.label(job)
    finally:
        await ctx.engine.reclaim_device()


def _scores(part: _Part, candidates: int) -> FloatArray:
    """Log-probs [held + candidates, n_labels] of a part's texts, on disk; an empty file cannot be mapped."""
    found: FloatArray = np.load(part.fit.scores, mmap_mode="r" if candidates or part.fold.held else None)
    return found


@dataclass(frozen=True)
class _Told:
    """What the seeds out of fold tell of a way; `losses` [n], nats, each at the likeliest temperature of all."""

    temperature: float
    evaluation: Evaluation | None
    losses: FloatArray


def _calibrate(ctx: JobContext, folds: Sequence[_Part], scores: Sequence[FloatArray], coldest: float) -> _Told:
    """The temperature that fits the seeds out of fold, and how well they are told then; the coldest without folds."""
    if not folds:
        return _Told(coldest or 1.0, None, np.empty(0))
    held = [found[: len(part.fold.held)] for part, found in zip(folds, scores, strict=True)]
    logprobs = np.concatenate(held).astype(np.float64)
    gold = np.array(ctx.task.positions(seed.label for part in folds for seed in part.fold.held))
    temperature = max(scoring.fit_temperature(logprobs, gold), coldest)
    probs = scoring.normalise(logprobs / temperature)
    return _Told(temperature, metrics.evaluate(probs, gold), metrics.losses(probs, gold))


class _Reader:
    """The labels of the candidates in their order, out of the parts' files."""

    def __init__(
        self, parts: Sequence[_Part], scores: Sequence[FloatArray], placed: Sequence[int], temperature: float
    ) -> None:
        self._scores = scores
        self._next = [len(part.fold.held) for part in parts]
        self._placed = iter(placed)
        self._temperature = temperature

    def rows(self, count: int) -> list[dict[str, Any]]:
        """Score rows of the next candidates, as of `stages/score.py`."""
        return [{"logprobs": self._take().tolist(), "error": ""} for _ in range(count)]

    def _take(self) -> FloatArray:
        part = next(self._placed)
        if part == NOBODY:
            return np.empty(0)
        row = np.asarray(self._scores[part][self._next[part]], dtype=np.float64)
        self._next[part] += 1
        return row / self._temperature

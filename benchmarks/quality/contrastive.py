"""SetFit (arXiv 2209.11055) with its own library: the encoder tuned on pairs of seeds, then a linear head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from afdc.errors import ModelError
from afdc.task import Example
from afdc_pipeline.seams import FloatArray
from benchmarks.quality.encoder import encoder_path

PAIRS = 20  # pairs a seed and kind, as in the paper
PAIR_BUDGET = 20_000  # many labels: fewer pairs a seed, or the baseline takes an hour


def setfit_probs(
    seeds: Sequence[Example], names: Sequence[str], texts: Sequence[str], seed: int, folder: Path, device: str
) -> FloatArray:
    """Probabilities [n, n_labels] of texts after one epoch of contrastive tuning.

    Raises:
        ModelError: the library is not installed.
    """
    try:
        from datasets import Dataset
        from setfit import SetFitModel, Trainer, TrainingArguments  # type: ignore[import-untyped]  # it ships no types
    except ImportError as exc:
        raise ModelError(f"SetFit cannot be used: {exc}", remedy="scripts/setup.sh bench") from exc
    rows = {"text": [row.text for row in seeds], "label": [names.index(row.label or "") for row in seeds]}
    model = SetFitModel.from_pretrained(str(encoder_path()), device=device)
    arguments = TrainingArguments(
        output_dir=str(folder / "setfit"),
        num_iterations=max(1, min(PAIRS, PAIR_BUDGET // (2 * len(seeds)))),
        num_epochs=1,
        batch_size=16,
        seed=seed,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        show_progress_bar=False,
    )
    Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict(rows)).train()
    predicted = model.predict_proba(list(texts), as_numpy=True, show_progress_bar=False)
    out = np.zeros((len(texts), len(names)))
    out[:, model.model_head.classes_] = predicted
    return out

"""A sentence encoder: texts to unit vectors, the mean of the last layer's token states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afdc.config import EncoderConfig
from afdc.errors import ModelError
from afdc_trainer.data import batches
from afdc_trainer.model import fast_dtype, pick_device

Vectors = NDArray[np.float32]

READ_BATCH = 64


class SentenceEncoder:
    """One encoder in this process. Every object has weights of its own, as they lie in the folder.

    They are float32; products of matrices are computed in bfloat16 where the hardware does (`torch.autocast`).
    """

    def __init__(self, folder: Path, config: EncoderConfig, dtype: torch.dtype | None = None) -> None:
        """Load it.

        Args:
            dtype: of products of matrices; None: the fast one of the device.

        Raises:
            ModelError: the folder cannot be loaded.
            UsageError: a GPU is asked for and torch sees none.
        """
        from transformers import AutoModel, AutoTokenizer

        self.device = pick_device(config.device, "encoder.device")
        self._dtype = dtype or fast_dtype(self.device)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
        except (OSError, ValueError, KeyError) as exc:
            raise ModelError(f"the encoder in {folder} cannot be loaded: {exc}", remedy="Check encoder.model") from exc
        self.model: Any = model.to(self.device)
        self._limit = min(config.max_tokens, int(getattr(model.config, "max_position_embeddings", config.max_tokens)))

    def states(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [n, width] in the model's graph. Longer texts are cut."""
        options = {"padding": True, "truncation": True, "max_length": self._limit, "return_tensors": "pt"}
        inputs = self._tokenizer(list(texts), **options).to(self.device)
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            found = self.model(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"][:, :, None].to(found.dtype)
        return torch.nn.functional.normalize((found * mask).sum(1) / mask.sum(1), dim=1)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors float32 [n, width]; texts of a length go through together."""
        self.model.eval()
        out = np.zeros((len(texts), int(self.model.config.hidden_size)), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        for part in batches(order, READ_BATCH):
            with torch.inference_mode():
                out[part] = self.states([texts[at] for at in part]).cpu().numpy()
        return out

"""Keys and values of many running sequences in one buffer a layer, so that a step writes in place.

Rows are aligned at their end: row b holds its tokens in columns `length - lengths[b]` to `length`. A step then writes
one column for every row, and sequences may leave and join between steps (`merge`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ATTENTION = "afdc_rows"
SPARE = 32  # columns added at a merge: steps until the buffers must grow again


@dataclass
class Rows:
    """B sequences: `keys` and `values` are one [B, G, columns, D] a layer; `lengths`: int64 [B], on the device."""

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor
    length: int = 0
    bias: Tensor | None = None

    @classmethod
    def empty(cls, layers: int, lengths: Tensor) -> Rows:
        """Rows whose buffers the first forward pass makes: a prefill of prompts padded on the left."""
        return cls([torch.empty(0)] * layers, [torch.empty(0)] * layers, lengths)

    @property
    def columns(self) -> int:
        return int(self.keys[0].shape[2])

    def store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put what a layer computed for its newest columns in place; returns everything up to them."""
        if not self.keys[layer].numel():
            self.keys[layer], self.values[layer] = key.contiguous(), value.contiguous()
            return key, value
        end = self.length
        self.keys[layer][:, :, end - key.shape[2] : end] = key
        self.values[layer][:, :, end - key.shape[2] : end] = value
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def seen(self, dtype: torch.dtype) -> Tensor:
        """Bias [B, 1, 1, length]: 0 at a row's own columns, very low at the padding before them."""
        columns = torch.arange(self.length, device=self.lengths.device)
        padding = columns < (self.length - self.lengths)[:, None]
        bias = torch.zeros(padding.shape, dtype=dtype, device=padding.device)
        return bias.masked_fill_(padding, torch.finfo(dtype).min)[:, None, None]


def merge(parts: Sequence[tuple[Rows, Tensor]]) -> Rows:
    """The chosen rows (int64 indices, repeats allowed) of each part in new buffers, without columns nobody needs."""
    lengths = torch.cat([rows.lengths[chosen] for rows, chosen in parts])
    length = int(lengths.max())

    def gather(name: str, layer: int) -> Tensor:
        first: Tensor = getattr(parts[0][0], name)[layer]
        out = first.new_zeros((len(lengths), first.shape[1], length + SPARE, first.shape[3]))
        start = 0
        for rows, chosen in parts:
            have = min(rows.length, length)
            old = getattr(rows, name)[layer][:, :, rows.length - have : rows.length]
            out[start : start + len(chosen), :, length - have : length] = old.index_select(0, chosen)
            start += len(chosen)
        return out

    layers = range(len(parts[0][0].keys))
    return Rows([gather("keys", i) for i in layers], [gather("values", i) for i in layers], lengths, length)


def rows_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention in the signature of transformers' AttentionInterface: new columns over a row's own columns.

    Args:
        query: [B, H, Q, D]; key, value: [B, G, Q, D], H a multiple of G.
        attention_mask: ignored; `options["rows"]` holds the earlier columns and the bias.
    """
    rows: Rows = options["rows"]
    key, value = rows.store(module.layer_idx, key, value)
    batch, heads, width, depth = query.shape
    groups = key.shape[1]
    scale = options.get("scaling") or depth**-0.5
    grouped = query.reshape(batch, groups, heads // groups * width, depth)
    scores = (grouped @ key.transpose(2, 3)) * scale
    softcap = options.get("softcap")
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.view(batch, groups, heads // groups, width, -1)
    assert rows.bias is not None
    weights = torch.softmax(scores + rows.bias[:, None], dim=-1).reshape(batch, groups, heads // groups * width, -1)
    out = (weights @ value).view(batch, heads, width, depth)
    return out.transpose(1, 2), None

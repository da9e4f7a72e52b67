"""Attention over a pack: the prefix over itself, every example over the prefix and itself.

Dense attention over the N x N mask of a pack spends most of its time on pairs that never see each other, and on a CPU
costs as much as all linear layers [measured, docs/trainer.md]. Here an example's queries meet the prefix's keys in one
product for all examples, and their own keys in one small product each. Only these scores are padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from afdc.errors import ModelError
from afdc_trainer.pack import Pack

ATTENTION = "afdc_tree"


@dataclass(frozen=True)
class Tree:
    """A pack's layout on the device (see Pack). `bias`: [B, 1, L, P + L], 0 where a token is seen, else very low."""

    prefix: int
    rows: Tensor
    place: Tensor
    bias: Tensor

    @classmethod
    def of(cls, pack: Pack, device: torch.device, dtype: torch.dtype) -> Tree:
        """The layout of `pack` with its bias in the type of the scores."""
        batch, width, _ = pack.own.shape
        bias = torch.zeros((batch, width, pack.prefix + width), dtype=dtype)
        bias[:, :, pack.prefix :].masked_fill_(torch.from_numpy(~pack.own), torch.finfo(dtype).min)
        rows, place = torch.from_numpy(pack.rows), torch.from_numpy(pack.place)
        return cls(pack.prefix, rows.to(device), place.to(device), bias[:, None].to(device))


def tree_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention in the signature of transformers' AttentionInterface.

    Args:
        query: [1, H, N, D]; key, value: [1, H_kv, N, D], H a multiple of H_kv.
        attention_mask: ignored; `options["tree"]` says who sees whom.

    Returns:
        [1, N, H, D] and no weights.

    Raises:
        ModelError: the model adds attention sinks, which are not implemented.
    """
    if options.get("s_aux") is not None:
        raise ModelError("models with attention sinks cannot be trained yet", remedy="Use another base model")
    tree: Tree = options["tree"]
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    cut = tree.prefix
    batch, width = tree.rows.shape
    flat = tree.rows.flatten()
    own_q, own_k, own_v = (part.index_select(0, flat).view(batch, width, *part.shape[1:]) for part in (q, k, v))
    attend = _fused if query.is_cuda and not options.get("softcap") else _split
    rows = attend(own_q, own_k, own_v, (k[:cut], v[:cut]), tree.bias, scale, options.get("softcap"))
    rows = rows.reshape(batch * width, *q.shape[1:]).index_select(0, tree.place)
    if not cut:
        return rows[None], None
    head = _causal(q[:cut], k[:cut], v[:cut], scale, options.get("softcap"))
    return torch.cat([head, rows])[None], None


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Plain causal attention of the prefix: q [P, H, D] and k, v [P, H_kv, D] to [P, H, D]."""
    length = q.shape[0]
    bias = torch.full((length, length), torch.finfo(q.dtype).min, dtype=q.dtype, device=q.device).triu_(1)
    return _split(q[None], k[None], v[None], (k[:0], v[:0]), bias[None, None], scale, softcap)[0]


def _split(
    q: Tensor, k: Tensor, v: Tensor, shared: tuple[Tensor, Tensor], bias: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """q [B, L, H, D], k and v [B, L, G, D], shared keys and values [P, G, D], to [B, L, H, D].

    Each of the G key heads serves H / G query heads.
    """
    shared_k, shared_v = shared
    batch, width, heads, depth = q.shape
    groups = k.shape[2]
    each = heads // groups
    grouped = q.view(batch, width, groups, each, depth).permute(2, 0, 3, 1, 4)  # [G, B, H/G, L, D]
    wide = grouped.reshape(groups, batch * each * width, depth)
    scores = (wide.view(groups, batch, each * width, depth) @ k.permute(2, 0, 3, 1)).view(
        groups, batch, each, width, width
    )
    if shared_k.shape[0]:
        ahead = (wide @ shared_k.permute(1, 2, 0)).view(groups, batch, each, width, -1)
        scores = torch.cat([ahead, scores], dim=-1)
    scores = scores * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    weights = torch.softmax(scores + bias, dim=-1)
    cut = shared_k.shape[0]
    own = weights[..., cut:].reshape(groups, batch, each * width, width) @ v.permute(2, 0, 1, 3)
    out = own.view(groups, batch * each * width, depth)
    if cut:
        out = out + weights[..., :cut].reshape(groups, batch * each * width, cut) @ shared_v.permute(1, 0, 2)
    return out.view(groups, batch, each, width, depth).permute(1, 3, 0, 2, 4).reshape(batch, width, heads, depth)


def _fused(
    q: Tensor, k: Tensor, v: Tensor, shared: tuple[Tensor, Tensor], bias: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """The same with torch's fused kernel, which keeps no scores: for GPUs. `softcap` must be None."""
    shared_k, shared_v = shared
    batch = q.shape[0]
    keys = torch.cat([shared_k.expand(batch, *shared_k.shape), k], dim=1).transpose(1, 2)
    values = torch.cat([shared_v.expand(batch, *shared_v.shape), v], dim=1).transpose(1, 2)
    each = q.shape[2] // k.shape[2]
    keys, values = keys.repeat_interleave(each, dim=1), values.repeat_interleave(each, dim=1)
    out = functional.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=bias, scale=scale)
    return out.transpose(1, 2)

"""LoRA on the CPU as plain matrix products, one pair for each adapter in the batch.

vLLM's CPU code gathers a whole A and B matrix for every token, and indexes its adapter slots with -1 for rows that have
no adapter, which picks the last slot. Here the rows of each adapter are worked out once a step; a layer then does two
products for each adapter and slice, in place, and leaves all other rows alone.

vLLM runs the model eagerly on the CPU when LoRA is on, so Python state may steer the layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.lora.punica_wrapper import punica_cpu
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

EXPECTED_PARAMETERS = {
    "update_metadata": ["self", "mapping", "lora_index_to_id", "max_loras", "vocab_size", "kwargs"],
    "add_lora_linear": [
        *["self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "output_slices", "buffer", "kwargs"]
    ],
    "add_lora_logits": ["self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "buffer", "kwargs"],
}
EXPECTED_PROPERTIES = ("token_lora_indices", "sampler_indices")


@dataclass(frozen=True)
class RowGroup:
    """The rows of a batch that one adapter slot answers for: a slice where they are neighbours, else their indices."""

    slot: int
    rows: slice | torch.Tensor


def row_groups(indices: torch.Tensor) -> tuple[RowGroup, ...]:
    """Group the rows of a batch by adapter slot.

    Args:
        indices: [rows] slot of each row, negative where it has no adapter (such rows are in no group).
    """
    slots, counts = torch.unique_consecutive(indices, return_counts=True)
    spans: dict[int, list[tuple[int, int]]] = {}
    start = 0
    for slot, count in zip(slots.tolist(), counts.tolist(), strict=True):
        if slot >= 0:
            spans.setdefault(slot, []).append((start, start + count))
        start += count
    return tuple(RowGroup(slot, _rows(ranges)) for slot, ranges in spans.items())


def _rows(ranges: list[tuple[int, int]]) -> slice | torch.Tensor:
    if len(ranges) == 1:
        return slice(*ranges[0])
    return torch.cat([torch.arange(start, stop) for start, stop in ranges])


def add_delta(
    y: torch.Tensor,
    x: torch.Tensor,
    groups: Sequence[RowGroup],
    a_stacked: Sequence[torch.Tensor],
    b_stacked: Sequence[torch.Tensor],
    widths: Sequence[int],
    scale: float,
) -> None:
    """y[rows] += scale * x[rows] A^T B^T for each group, in place.

    Args:
        y: [rows, out], x: [rows, in].
        a_stacked: for each slice of the output [slots, 1, rank, in].
        b_stacked: for each slice of the output [slots, 1, width, rank].
        widths: columns of y that each slice covers, from the left.
        scale: factor on top of alpha / rank, which is folded into B already.
    """
    for group in groups:
        if isinstance(group.rows, slice):
            _accumulate(y[group.rows], x[group.rows], group.slot, a_stacked, b_stacked, widths, scale)
            continue
        part = y.index_select(0, group.rows)
        _accumulate(part, x.index_select(0, group.rows), group.slot, a_stacked, b_stacked, widths, scale)
        y.index_copy_(0, group.rows, part)


def _accumulate(
    y: torch.Tensor,
    x: torch.Tensor,
    slot: int,
    a_stacked: Sequence[torch.Tensor],
    b_stacked: Sequence[torch.Tensor],
    widths: Sequence[int],
    scale: float,
) -> None:
    offset = 0
    for a_slots, b_slots, width in zip(a_stacked, b_stacked, widths, strict=True):
        a, b = a_slots[slot].view(-1, a_slots.shape[-1]), b_slots[slot].view(-1, b_slots.shape[-1])[:width]
        target = y[:, offset : offset + width]
        hidden = x.to(a.dtype) @ a.t()
        if b.dtype == y.dtype:
            target.addmm_(hidden, b.t(), alpha=scale)
        else:
            target.add_((hidden @ b.t()).to(y.dtype), alpha=scale)
        offset += width


class GroupedPunicaWrapperCPU(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM's classes are Any to mypy here
    """vLLM's CPU LoRA wrapper with row groups in place of gathers for each token.

    The paths for fully sharded adapters (tensor parallel) and for trained embeddings stay vLLM's own.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._token_groups: tuple[RowGroup, ...] = ()
        self._sampler_groups: tuple[RowGroup, ...] = ()

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **kwargs: Any
    ) -> None:
        """Called once a step, before the layers."""
        super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
        self._token_groups = row_groups(self.token_lora_indices)
        self._sampler_groups = row_groups(self.sampler_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the adapters' part to a linear layer's output y [tokens, out], in place. `buffer` is not needed."""
        if self._token_groups:
            y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
            add_delta(y, x, self._token_groups, lora_a_stacked, lora_b_stacked, output_slices, scale)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the adapters' part to the logits y [sampled rows, vocabulary], in place.

        vLLM wraps the output layer for every adapter; where it is not trained the slot holds zeros.
        """
        groups = [group for group in self._sampler_groups if lora_a_stacked[group.slot].any()]
        if groups:
            y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
            width = min(lora_b_stacked.shape[-2], y.shape[-1])  # the two may be padded differently
            add_delta(y, x, groups, (lora_a_stacked,), (lora_b_stacked,), (width,), scale)


def install() -> None:
    """Make vLLM build `GroupedPunicaWrapperCPU` in this process. Calling it again changes nothing.

    Raises:
        TypeError: vLLM's class has other methods than this code was written for; nothing was changed.
        AttributeError: it lacks one of them; nothing was changed.
    """
    require_known(PunicaWrapperCPU)
    punica_cpu.PunicaWrapperCPU = GroupedPunicaWrapperCPU


def require_known(wrapper: type) -> None:
    """Check that `wrapper` has the methods and properties that the grouped one replaces and reads.

    Raises:
        TypeError: a method has other parameters.
        AttributeError: a method or property is missing.
    """
    for name, expected in EXPECTED_PARAMETERS.items():
        found = list(inspect.signature(getattr(wrapper, name)).parameters)
        if found != expected:
            raise TypeError(f"{wrapper.__name__}.{name} takes {', '.join(found)}")
    for name in EXPECTED_PROPERTIES:
        getattr(wrapper, name)

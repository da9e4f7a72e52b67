"""The gradient of one batch, pack by pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from afdc.config import TrainConfig
from afdc_trainer.contrast import contrastive_loss
from afdc_trainer.data import Example
from afdc_trainer.model import answer_loss, predictions, predictions_and_states, prompt_states
from afdc_trainer.pack import Pack, build_pack, split_examples
from afdc_trainer.ranks import Ranks


@dataclass(frozen=True)
class Batch:
    """Entries of one optimiser step: rows by number, and the encoded rows. All processes hold the same batch."""

    rows: Sequence[int]
    examples: Sequence[Example]

    @property
    def contrasts(self) -> bool:
        """Whether two entries can be compared by label."""
        return all(example.label is not None for example in self.examples)


@dataclass(frozen=True)
class Gradient:
    """Backward passes of a model under a configuration; gradients are added where the parameters have them.

    The loss of a batch is the mean over its entries of the label's cross-entropy plus `contrastive` times the
    contrastive loss. The first is a sum over packs. The second compares all entries: where they lie in several packs or
    processes, their states are computed once without a graph, the loss's gradient is taken there, and each pack's own
    pass multiplies it in (gradient caching, Gao et al. 2021, arXiv 2101.06983). The first pass has no dropout.
    """

    model: Any
    prefix: Sequence[int]
    config: TrainConfig
    ranks: Ranks

    def add(self, batch: Batch, budget: int) -> tuple[float, int]:
        """One batch in packs of at most `budget` tokens; returns this process's part of the loss, and its tokens."""
        mine = batch.examples[self.ranks.rank :: self.ranks.size]
        groups = split_examples(len(self.prefix), mine, budget) if mine else []
        packs = [build_pack(self.prefix, group) for group in groups]
        if not (self.config.contrastive and batch.contrasts):
            loss = sum(self._add_answers(pack, len(batch.rows)) for pack in packs)
        elif len(packs) == 1 and self.ranks.size == 1:
            loss = self._add_whole(packs[0], batch)
        else:
            loss = self._add_cached(packs, batch)
        return loss, sum(len(pack.ids) for pack in packs)

    def _add_answers(self, pack: Pack, size: int) -> float:
        loss = self._answer_loss(predictions(self.model, pack), pack) / size
        return _backward(loss)

    def _add_whole(self, pack: Pack, batch: Batch) -> float:
        logprobs, states = predictions_and_states(self.model, pack)
        return _backward(self._answer_loss(logprobs, pack) / len(batch.rows) + self._contrast(states, batch))

    def _add_cached(self, packs: Sequence[Pack], batch: Batch) -> float:
        pull, value = self._pull(packs, batch)
        loss, start = value if self.ranks.first else 0.0, 0
        for pack in packs:
            logprobs, states = predictions_and_states(self.model, pack)
            answers = self._answer_loss(logprobs, pack) / len(batch.rows)
            _backward(answers + (states * pull[start : start + len(states)]).sum())
            loss += float(answers.detach())
            start += len(states)
        return loss

    def _pull(self, packs: Sequence[Pack], batch: Batch) -> tuple[Tensor, float]:
        """Gradient of the contrastive loss at the states of this process's entries, and its value."""
        width, device = self.model.config.get_text_config().hidden_size, self.model.device
        states = torch.zeros((len(batch.rows), width), device=device)
        with torch.no_grad():
            if packs:
                own = torch.cat([prompt_states(self.model, pack) for pack in packs])
                states[self.ranks.rank :: self.ranks.size] = own
            self.ranks.sum(states)
        states.requires_grad_()
        value = self._contrast(states, batch)
        (pull,) = torch.autograd.grad(value, states)
        return pull[self.ranks.rank :: self.ranks.size], float(value.detach())

    def _contrast(self, states: Tensor, batch: Batch) -> Tensor:
        device = states.device
        labels = torch.tensor([example.label for example in batch.examples], device=device)
        weights = torch.tensor([example.weight for example in batch.examples], device=device)
        rows = torch.tensor(batch.rows, device=device)
        loss = contrastive_loss(states, labels, rows, weights, self.config.contrastive_temperature)
        return self.config.contrastive * loss

    def _answer_loss(self, logprobs: Tensor, pack: Pack) -> Tensor:
        return answer_loss(logprobs, pack, self.config.label_smoothing)


def _backward(loss: Tensor) -> float:
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    return float(loss.detach())

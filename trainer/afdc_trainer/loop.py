"""The optimiser loop: packs, backward passes, clipping, AdamW, checkpoints, progress."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from afdc.errors import TrainerError
from afdc.memory import names_out_of_memory
from afdc.training import PROGRESS_FILE, TrainJob
from afdc_trainer import checkpoint
from afdc_trainer.checkpoint import Trace
from afdc_trainer.data import Example
from afdc_trainer.gradient import Batch, Gradient
from afdc_trainer.lora import LoraWeights
from afdc_trainer.ranks import Ranks

MAX_NORM = 1.0
MAX_SEED = 1 << 63  # torch takes 64 bits
CPU_BUDGET, GPU_BUDGET = 1024, 8192


@dataclass
class Fit:
    """One run: everything that a step needs.

    Attributes:
        examples: encoded rows; steps: their indices, one list an optimiser step.
        prefix: ids shared by every prompt.
    """

    job: TrainJob
    model: Any
    weights: LoraWeights
    prefix: list[int]
    examples: Sequence[Example]
    steps: Sequence[Sequence[int]]
    ranks: Ranks

    def run(self) -> tuple[Trace, int]:
        """Train to the end from the last checkpoint. Returns the trace and the step resumed at.

        Raises:
            TrainerError: the loss or the gradient is not finite, or the memory does not hold one row.
        """
        flat, config = self.weights.flat, self.job.config
        optimizer = torch.optim.AdamW([flat], lr=config.learning_rate, weight_decay=config.weight_decay, foreach=False)
        key = checkpoint.fingerprint(self.job)
        trace = self._resume(optimizer, key)
        begun, started, offset = trace.step, time.perf_counter(), trace.seconds
        while trace.step < len(self.steps):
            loss = self._step(optimizer, trace)
            trace.losses.append(loss)
            trace.step += 1
            trace.seconds = offset + time.perf_counter() - started
            self._report(trace)
            if trace.step % config.checkpoint_every == 0 and trace.step < len(self.steps) and self.ranks.first:
                checkpoint.save_checkpoint(self.job.work, key, trace, [flat, *checkpoint.moments(optimizer, flat)])
        return trace, begun

    def _resume(self, optimizer: torch.optim.AdamW, key: str) -> Trace:
        found = checkpoint.load_checkpoint(self.job.work, key) if self.ranks.first else None
        self.ranks.wait()
        if not self.ranks.first:
            found = checkpoint.load_checkpoint(self.job.work, key)
        if found is None:
            return Trace(budget=CPU_BUDGET if self.weights.flat.device.type == "cpu" else GPU_BUDGET)
        trace, tensors = found
        checkpoint.restore(optimizer, self.weights.flat, trace, tensors)
        if trace.recompute:
            recompute_activations(self.model)
        return trace

    def _step(self, optimizer: torch.optim.AdamW, trace: Trace) -> float:
        """One optimiser step; the loss is the mean over the batch's rows."""
        torch.manual_seed((self.job.seed * 1_000_003 + trace.step) % MAX_SEED)
        rows = self.steps[trace.step]
        batch = Batch(rows, [self.examples[row] for row in rows])
        loss = self.ranks.total(self._backward_within_memory(batch, trace))
        gradient = self.weights.flat.grad
        assert gradient is not None  # noqa: S101  # set once in LoraWeights; narrows the type
        self.ranks.sum(gradient)
        norm = float(gradient.norm())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainerError(
                f"step {trace.step + 1}: the loss is {loss} and the gradient's norm {norm}",
                remedy="Lower train.learning_rate, or set train.dtype = float32",
            )
        gradient.mul_(min(1.0, MAX_NORM / (norm + 1e-6)))
        optimizer.param_groups[0]["lr"] = self.job.config.learning_rate * self._rate(trace.step)
        optimizer.step()
        return loss

    def _rate(self, step: int) -> float:
        """Linear from near 0 to 1 over the warm-up, then linear towards 0 after the last step."""
        warm = math.ceil(self.job.config.warmup * len(self.steps))
        if step < warm:
            return (step + 1) / warm
        return (len(self.steps) - step) / (len(self.steps) - warm)

    def _backward_within_memory(self, batch: Batch, trace: Trace) -> float:
        """Where memory runs out: smaller packs, then recomputed activations, then an error with a remedy."""
        while True:
            try:
                return self._backward(batch, trace)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as exc:
                if not is_out_of_memory(exc):
                    raise
                smallest = len(self.prefix) + max(example.tokens for example in batch.examples)
                if trace.budget <= smallest and trace.recompute:
                    raise TrainerError(
                        f"one row of {smallest} tokens does not fit in memory: {exc}",
                        remedy="Lower train.rank or engine.max_model_len, or take a smaller model",
                    ) from exc
            trace.recompute = trace.recompute or trace.budget <= smallest
            trace.budget = max(smallest, trace.budget // 2)
            self._free(trace)

    def _free(self, trace: Trace) -> None:
        if trace.recompute:
            recompute_activations(self.model)
        if self.weights.flat.device.type == "cuda":
            torch.cuda.empty_cache()

    def _backward(self, batch: Batch, trace: Trace) -> float:
        gradient = self.weights.flat.grad
        assert gradient is not None  # noqa: S101  # set once in LoraWeights; narrows the type
        gradient.zero_()
        loss, tokens = Gradient(self.model, self.prefix, self.job.config, self.ranks).add(batch, trace.budget)
        trace.tokens += tokens
        return loss

    def _report(self, trace: Trace) -> None:
        if self.ranks.first:
            speed = trace.tokens / max(trace.seconds, 1e-9)
            write_progress(self.job.result.parent, trace.step, len(self.steps), trace.losses[-1], speed)


def write_progress(folder: Path, step: int, steps: int, loss: float, tokens_per_second: float) -> None:
    """Append one line for the parent process to show."""
    line = {"step": step, "steps": steps, "loss": round(loss, 6), "tokens_per_second": round(tokens_per_second, 1)}
    with (folder / PROGRESS_FILE).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def recompute_activations(model: Any) -> None:
    """Gradient checkpointing (Chen et al. 2016): about a third more time for a fraction of the memory."""
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether a device or the host ran out of memory: by type, else by message, as CPU torch and cuBLAS tell it."""
    return isinstance(exc, torch.OutOfMemoryError | MemoryError) or names_out_of_memory(str(exc))

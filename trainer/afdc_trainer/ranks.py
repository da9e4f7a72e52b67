"""Several processes, one a GPU: started by `accelerate launch` or torchrun, alike to the rest of the code."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among `size`; each takes every size-th row of a batch and gradients are summed."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """The one that reads, writes and publishes."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> None:
        """Replace `tensor` in every process by the sum over the processes."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)

    def total(self, value: float) -> float:
        """Sum of a number over the processes, in float64."""
        if self.size == 1:
            return value
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor(value, dtype=torch.float64, device=device)
        self.sum(tensor)
        return float(tensor)

    def wait(self) -> None:
        """Go on when every process is here."""
        if self.size > 1:
            torch.distributed.barrier()

    def leave(self) -> None:
        """Close the process group, when nothing more is asked of the others: its threads outlive the interpreter and
        abort the process at its end now and then.
        """
        if self.size > 1:
            torch.distributed.destroy_process_group()


def join(cpu: bool) -> Ranks:
    """Join the process group that the environment names (WORLD_SIZE and the rest), if any."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    from accelerate import PartialState

    state = PartialState(cpu=cpu)
    return Ranks(state.process_index, state.num_processes, state.local_process_index)

"""The rows that flow through the loop, and their flat form on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from afdc.task import text_id

Source = Literal["seed", "generated", "unlabeled", "human"]


@dataclass(frozen=True, slots=True)
class Seed:
    """One gold example of D0. `holdout`: kept out of training to gate adapters."""

    id: str
    text: str
    label: str
    holdout: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text of D1 before it is scored.

    Attributes:
        intended: the label that the text was generated for; None for unlabelled text.
        seed_ids: the seeds shown in the prompt; `parent` is the one it varies.
        augment_round: 1-based; 0 for unlabelled text.
        generator: adapter that wrote it; "" is the base model.
        sampling: canonical JSON of the sampling settings.
        cluster: id shared by texts found to be near-duplicates of this one, which were left out.
    """

    id: str
    text: str
    source: Source
    intended: str | None = None
    parent: str = ""
    seed_ids: tuple[str, ...] = ()
    augment_round: int = 0
    draw: int = 0
    generator: str = ""
    prompt_hash: str = ""
    sampling: str = ""
    tokens: int = 0
    mean_logprob: float | None = None
    cluster: str = ""

    def to_row(self) -> dict[str, Any]:
        """Flat form for a RowStore."""
        row = {name: getattr(self, name) for name in self.__slots__}
        row["seed_ids"] = list(self.seed_ids)
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Candidate:
        """Inverse of `to_row`."""
        return cls(**{**row, "seed_ids": tuple(row["seed_ids"] or ())})


def candidate_id(job: str, augment_round: int, parent: str, draw: int) -> str:
    """Id of a draw: the same draw asked for again is the same candidate."""
    return text_id("c_", job, augment_round, parent, draw)

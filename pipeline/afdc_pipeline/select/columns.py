"""What selection reads about every candidate, and what it answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from afdc_pipeline import scoring
from afdc_pipeline.seams import FloatArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Rows = NDArray[np.int64]  # indices into the columns


class Reason(IntEnum):
    """Why a candidate is in D2 or out of it."""

    KEPT = 0
    ENGINE_REJECTED = 1
    BELOW_THRESHOLD = 2
    DISAGREES_WITH_INTENDED = 3
    SEED_CAP = 4
    LABEL_CAP = 5
    OVER_TARGET = 6
    NOT_DIVERSE = 7
    NOT_TRUSTED = 8
    LABELLERS_DISAGREE = 9


REASONS: dict[int, str] = {reason.value: reason.name.lower() for reason in Reason}


@dataclass(frozen=True, slots=True)
class Columns:
    """One entry a candidate of D1, 38 bytes each; every array is [n].

    Attributes:
        label: scored label index, argmax_y; -1 where the engine gave no scores.
        intended: label index that the text was generated for; -1 is unknown (unlabelled text).
        confidence, margin, entropy, disagreement: of the labeller's distribution (see `scoring`); NaN without scores.
        parent: index of the seed that the text varies; -1 is none, and no seed cap applies to it.
        rejected: the engine could not score the text.
        divided: two kinds of labellers give it different labels.
        tie: `tie_break` of the candidate's id: orders rows that are worth the same, the same way in every run.
    """

    label: Int32
    intended: Int32
    confidence: Float32
    margin: Float32
    entropy: Float32
    disagreement: Float32
    parent: Int32
    rejected: NDArray[np.bool_]
    divided: NDArray[np.bool_]
    tie: NDArray[np.uint64]

    def __post_init__(self) -> None:
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns differ in length: {lengths}")

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def from_probs(
        cls,
        probs: FloatArray,
        ids: Sequence[str],
        intended: Sequence[int] | Int32,
        parent: Sequence[int] | Int32,
        disagreement: FloatArray | None = None,
        divided: NDArray[np.bool_] | None = None,
    ) -> Columns:
        """Columns of one chunk, from its distributions [n, n_labels]; a row of NaN is a rejected text.

        Args:
            disagreement: nats, [n], from `scoring.disagreement`; None is a committee of one, all 0.
            divided: bool [n]; None: there is one kind of labeller.
        """
        scored = scoring.labels(probs)
        apart = np.zeros(len(probs)) if disagreement is None else disagreement
        return cls(
            label=scored,
            intended=np.asarray(intended, dtype=np.int32),
            confidence=scoring.confidence(probs).astype(np.float32),
            margin=scoring.margin(probs).astype(np.float32),
            entropy=scoring.entropy(probs).astype(np.float32),
            disagreement=apart.astype(np.float32),
            parent=np.asarray(parent, dtype=np.int32),
            rejected=scored < 0,
            divided=np.zeros(len(probs), dtype=np.bool_) if divided is None else divided,
            tie=tie_break(ids),
        )

    @classmethod
    def concat(cls, chunks: Sequence[Columns]) -> Columns:
        """The chunks of a pool, one after the other."""
        return cls(*(np.concatenate([getattr(chunk, field.name) for chunk in chunks]) for field in fields(cls)))


@dataclass(frozen=True, slots=True)
class Selection:
    """The answer, in the order of the columns.

    Attributes:
        keep: bool [n], the rows of D2.
        reason: uint8 [n], codes of `Reason`; `REASONS` names them.
        weight: float32 [n], loss weight of a kept row, 0 of the others.
    """

    keep: NDArray[np.bool_]
    reason: NDArray[np.uint8]
    weight: Float32

    def counts(self) -> dict[str, int]:
        """Number of rows for each reason that occurs, by name."""
        codes, numbers = np.unique(self.reason, return_counts=True)
        return {REASONS[int(code)]: int(number) for code, number in zip(codes, numbers, strict=True)}


def tie_break(ids: Sequence[str]) -> NDArray[np.uint64]:
    """64 bits of BLAKE2b of each id, [n]: an order that depends neither on the run nor on the texts' order."""
    digests = b"".join(hashlib.blake2b(i.encode("utf-8", "surrogatepass"), digest_size=8).digest() for i in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def sorted_by(columns: Columns, rows: Rows, key: NDArray[np.floating]) -> Rows:
    """`rows` with the smallest key first, and equal keys (NaN counts as largest) by the tie column."""
    return np.asarray(rows[np.lexsort((columns.tie[rows], key))])

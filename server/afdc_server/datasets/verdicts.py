"""What a person said about a row, in one form whichever way it came in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from afdc.wire.common import Fault
from afdc.wire.datasets import Decision, ReviewsCreate
from afdc_server.api.problems import SHOWN_FAULTS, RequestError

INVALID_REVIEWS = "invalid_reviews"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`label`: of a relabel, as it was written. `row_at`, `label_at`: where they stand in the body (RFC 6901)."""

    row: str
    decision: Decision
    label: str | None
    note: str
    reviewer: str
    row_at: str
    label_at: str


def read_reviews(body: ReviewsCreate) -> list[Verdict]:
    """The reviews of a body in the API's own form."""
    reviewer = storable(body.reviewer)
    return [
        Verdict(
            row=one.row,
            decision=one.decision,
            label=one.label,
            note=storable(one.note),
            reviewer=reviewer,
            row_at=f"/reviews/{at}/row",
            label_at=f"/reviews/{at}/label" if one.label is not None else f"/reviews/{at}/decision",
        )
        for at, one in enumerate(body.reviews)
    ]


def refuse(faults: Sequence[Fault]) -> None:
    """Tell of every fault at once. Raises RequestError where there is one."""
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        message = f"{faults[0].pointer}: {faults[0].message}{more}; nothing was stored"
        raise RequestError(message, list(faults[:SHOWN_FAULTS]), code=INVALID_REVIEWS)


def storable(text: str) -> str:
    """Without NUL, which PostgreSQL does not store."""
    return text.replace("\0", "")

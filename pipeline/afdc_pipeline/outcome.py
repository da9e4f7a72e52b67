"""The rows of the finished job: D0 and D2 as kept, everything else as rejected, each with its whole story."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from afdc_pipeline.context import JobContext
from afdc_pipeline.rows import Candidate, Seed
from afdc_pipeline.stages.decide import decided_rows
from afdc_pipeline.state import LoopState

DecidedRow = tuple[Candidate, list[dict[str, Any]]]
UNJUDGED: dict[str, Any] = {"agreement": None, "mean_logprob": None}  # columns of open tasks alone


def kept_rows(ctx: JobContext, state: LoopState) -> Iterator[dict[str, Any]]:
    """D = D0 and D2: the gold seeds first, then the rows of the last round's D2 in the order of the pool."""
    for seed in ctx.inputs.seeds:
        yield _seed_row(ctx, seed)
    for candidate, story in _stories(ctx, state):
        if story[-1]["keep"]:
            yield _row(ctx, state, candidate, story)


def rejected_rows(ctx: JobContext, state: LoopState) -> Iterator[dict[str, Any]]:
    """Scored texts that selection left out, then the texts that the filters dropped before scoring."""
    for candidate, story in _stories(ctx, state):
        if not story[-1]["keep"]:
            yield _row(ctx, state, candidate, story)
    for candidate, reason, detail in state.pool.dropped():
        yield {**_blank(candidate), **UNJUDGED, "reason": reason, "detail": detail}


def filter_counts(state: LoopState) -> dict[str, int]:
    """Texts that never reached the scorer, counted by reason, most frequent first."""
    return dict(Counter(reason for _, reason, _ in state.pool.dropped()).most_common())


def all_drops(state: LoopState, filtered: Mapping[str, int]) -> dict[str, int]:
    """Why texts are not in the data set: the filters' counts and the last selection's, most frequent first."""
    counts = Counter(filtered)
    counts.update({reason: n for reason, n in state.decisions[-1].reasons.items() if reason != "kept"})
    return dict(counts.most_common())


def _stories(ctx: JobContext, state: LoopState) -> Iterator[DecidedRow]:
    """Each candidate with its decision of every round, read in step."""
    streams = [decided_rows(ctx, state.pool, decisions.key) for decisions in state.decisions]
    for parts in zip(*streams, strict=True):
        yield parts[0][0], [row for _, row in parts]


def _row(ctx: JobContext, state: LoopState, candidate: Candidate, story: list[dict[str, Any]]) -> dict[str, Any]:
    last = story[-1]
    return {
        **_blank(candidate),
        "label": _label_of(ctx, last) or None,
        "accepted_round": _accepted_round(story),
        "scorer": "+".join(scorer.served or "base" for scorer in state.labellers),
        "distribution": last.get("distribution", []),
        "confidence": last["confidence"],
        "margin": last["margin"],
        "entropy": last["entropy"],
        "disagreement": last["disagreement"],
        "label_history": [_label_of(ctx, row) for row in story],
        "reason": last["reason"],
        "detail": last["error"],
        "weight": last["weight"] if last["keep"] else 0.0,
        **({"agreement": last["agreement"], "mean_logprob": last["logprob"]} if ctx.task.is_open else {}),
    }


def _label_of(ctx: JobContext, row: dict[str, Any]) -> str:
    """What a decision gave the text: a label, or the answer of an open task; "" for nothing."""
    if ctx.task.is_open:
        return str(row.get("answer", ""))
    return ctx.task.names[row["label"]] if row["distribution"] else ""


def _accepted_round(story: list[dict[str, Any]]) -> int | None:
    """First round of the unbroken run of acceptances that lasts to the end."""
    accepted = None
    for number in range(len(story) - 1, -1, -1):
        if not story[number]["keep"]:
            break
        accepted = number
    return accepted


def _blank(candidate: Candidate) -> dict[str, Any]:
    return {
        "id": candidate.id,
        "text": candidate.text,
        "label": None,
        "source": candidate.source,
        "seed_ids": list(candidate.seed_ids),
        "parent": candidate.parent,
        "intended": candidate.intended,
        "augment_round": candidate.augment_round,
        "accepted_round": None,
        "generator": candidate.generator,
        "prompt_hash": candidate.prompt_hash,
        "sampling": candidate.sampling,
        "scorer": "",
        "distribution": [],
        "confidence": None,
        "margin": None,
        "entropy": None,
        "disagreement": None,
        "label_history": [],
        "reason": "",
        "detail": "",
        "cluster": candidate.cluster,
        "weight": 0.0,
        "review_state": "unreviewed",
    }


def _seed_row(ctx: JobContext, seed: Seed) -> dict[str, Any]:
    candidate = Candidate(id=seed.id, text=seed.text, source="seed", intended=seed.label, cluster=seed.id)
    return {
        **_blank(candidate),
        "label": seed.label,
        "accepted_round": 0,
        **UNJUDGED,
        "distribution": [1.0 if name == seed.label else 0.0 for name in ctx.task.names],
        "confidence": 1.0,
        "margin": 1.0,
        "entropy": 0.0,
        "disagreement": 0.0,
        "label_history": [seed.label],
        "reason": "gold_holdout" if seed.holdout else "gold",
        "weight": 1.0,
        "review_state": "gold",
    }

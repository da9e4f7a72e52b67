"""Rows as a run hands them to the exporter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from afdc.presets import build_config
from afdc.result import EvalSummary
from afdc.task import Task
from afdc_server.export.card import CardFacts

LABELS = ("billing", "delivery", "技术问题")


def make_row(i: int, **changes: Any) -> dict[str, Any]:
    """A generated row with every column filled."""
    row: dict[str, Any] = {
        "id": f"c_{i:08d}",
        "text": f"Where is parcel {i}? 包裹在哪里",
        "label": LABELS[i % 3],
        "source": "generated",
        "seed_ids": ["s_1", "s_2"],
        "parent": "s_2",
        "intended": LABELS[i % 3],
        "augment_round": 1,
        "accepted_round": 2,
        "generator": "",
        "prompt_hash": "abc",
        "sampling": '{"temperature":1.0}',
        "scorer": "job-r1-0123456789ab",
        "distribution": [0.7, 0.2, 0.1],
        "confidence": 0.7,
        "margin": 0.5,
        "entropy": 0.8,
        "disagreement": 0.2,
        "label_history": [LABELS[i % 3], LABELS[i % 3]],
        "reason": "confidence above threshold",
        "detail": "",
        "cluster": "",
        "weight": 1.0,
        "review_state": "none",
    }
    return row | changes


def make_seed(i: int) -> dict[str, Any]:
    """A seed row: what is not known of it is null or empty."""
    unknown: dict[str, Any] = dict.fromkeys(("confidence", "margin", "entropy", "disagreement", "accepted_round"))
    return make_row(i, id=f"s_{i}", source="seed", distribution=[], label_history=[], **unknown)


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    return make_row


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [make_seed(i) for i in range(6)] + [make_row(i) for i in range(40)]


@pytest.fixture
def rejected() -> list[dict[str, Any]]:
    return [make_row(100 + i, reason="below threshold", accepted_round=None) for i in range(7)]


@pytest.fixture
def facts() -> CardFacts:
    return CardFacts(
        task=Task.model_validate({"instruction": "Sort the message.", "labels": list(LABELS)}),
        config=build_config("default", {"model": "SmolLM2-135M-Instruct"}),
        job="job1",
        model="SmolLM2-135M-Instruct",
        model_revision="rev",
        adapter="job1-r2-0123456789ab",
        eval=EvalSummary(base=0.4, seeds_only=0.6, final=0.8, n=50),
        dropped={"exact duplicate": 4, "too long": 1},
    )

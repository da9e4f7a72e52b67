"""The report: one file, no script, nothing fetched, everything from outside escaped."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from afdc.result import (
    AdapterRef,
    EvalSummary,
    Evaluation,
    PathRows,
    ReliabilityPoint,
    RoundResult,
    RunResult,
    Usage,
)
from afdc_server.export.facts import Collector, FunnelStep, ReportFacts, SampleRow
from afdc_server.export.report import render_report, write_report

HOSTILE = '<script>alert("x")</script><img src=http://evil.example/x onerror=alert(1)>'


class Tags(HTMLParser):
    """Collects elements and attributes, and checks that they nest."""

    VOID = frozenset({"meta", "line", "circle", "rect", "polyline"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def make_result(labels: list[str]) -> RunResult:
    rounds = [
        RoundResult(
            round=i,
            candidates=576,
            selected=310 + 20 * i,
            flip_rate=None if i == 0 else 0.12 / i,
            agreement=0.6 + 0.05 * i,
            mean_confidence=0.7,
            eval=Evaluation(accuracy=0.61 + 0.08 * i, n=48),
            holdout=Evaluation(accuracy=0.6, n=32, log_loss=0.9 - 0.1 * i) if i else None,
            adapter=f"job-1a2b3c4d-r{i}-0123456789ab",
            seconds={"score": 30.0, "train": 80.5},
        )
        for i in range(3)
    ]
    return RunResult(
        status="succeeded",
        job="job-1a2b3c4d",
        model="SmolLM2-135M-Instruct",
        preset="default",
        config_hash="0" * 64,
        seeds=32,
        labels=labels,
        rounds=rounds,
        stop_reason="all 2 rounds are done",
        eval=EvalSummary(base=0.31, seeds_only=0.61, final=0.77, n=48),
        dropped={"exact duplicate": 40, "near duplicate of a seed": 31, "too short": 8},
        dataset=PathRows(rows=382, path="runs/support/dataset"),
        adapter=AdapterRef(path="runs/support/adapter", name="job-1a2b3c4d-r2-0123456789ab"),
        usage=Usage(prompt_tokens=523_000, completion_tokens=21_000, wall_seconds=512.3),
    )


def make_facts(labels: list[str], text: str = "Where is my parcel?") -> ReportFacts:
    return ReportFacts(
        instruction="What does the customer write about?",
        confidence_kept=tuple(max(0, i - 8) * 4 for i in range(20)),
        confidence_left=tuple(30 - i for i in range(20)),
        threshold=0.6,
        reliability=tuple(
            ReliabilityPoint(low=i / 10, high=(i + 1) / 10, count=i, confidence=i / 10 + 0.05, accuracy=i / 10)
            for i in range(1, 10)
        ),
        funnel=(
            FunnelStep("generated", 655),
            FunnelStep("passed the filters", 576, {"exact duplicate": 40, "near duplicate of a seed": 31}),
            FunnelStep("kept", 350, {"label is not the intended one": 200, text: 26}),
        ),
        seed_counts=dict.fromkeys(labels, 8),
        kept_counts={name: 80 + i for i, name in enumerate(labels)},
        kept=tuple(SampleRow(text, name, name, 0.93, "confidence above threshold") for name in labels),
        rejected=(SampleRow(text, labels[0], labels[1], 0.41, "label is not the intended one"),),
    )


def test_the_page_is_whole_and_self_contained(tmp_path: Path) -> None:
    labels = ["billing", "delivery", "配送"]
    write_report(tmp_path / "report.html", make_result(labels), make_facts(labels))
    page = (tmp_path / "report.html").read_text()
    tags = Tags(page)
    assert tags.open == []
    assert not tags.seen & {"script", "link", "img", "iframe", "object"}
    assert not [name for name, _ in tags.attributes if name in {"src", "href"} or name.startswith("on")]
    assert not re.search(r"url\(|@import", page)
    for plot in (
        "accuracy by round",
        "flips by round",
        "selection funnel",
        "confidence histogram",
        "reliability diagram",
        "rows by label",
    ):
        assert f'aria-label="{plot}"' in page
    assert "77.0 %" in page
    assert "label is not the intended one" in page


def test_the_rounds_show_what_the_gate_compared() -> None:
    page = render_report(make_result(["a", "b"]), make_facts(["a", "b"]))
    assert "held-out log loss" in page
    assert ">0.800</td>" in page
    assert ">0.700</td>" in page


def test_advice_stands_before_the_next_commands() -> None:
    result = make_result(["a", "b"]).model_copy(update={"advice": ["Give more seeds of a."]})
    steps = render_report(result, ReportFacts()).partition("What to do next</h2>")[2]
    assert steps.strip().startswith("<p>Give more seeds of a.</p><pre>")


def test_text_from_outside_is_escaped() -> None:
    labels = [HOSTILE, "b"]
    result = make_result(labels).model_copy(update={"advice": [f"no row: {HOSTILE}"]})
    page = render_report(result, make_facts(labels, HOSTILE))
    tags = Tags(page)
    assert not tags.seen & {"script", "img"}
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_missing_parts_are_left_out(rounds: int) -> None:
    result = make_result(["a", "b"])
    bare = result.model_copy(
        update={
            "rounds": result.rounds[:rounds],
            "eval": EvalSummary(),
            "dataset": None,
            "adapter": None,
            "dropped": {},
        }
    )
    page = render_report(bare, ReportFacts())
    assert Tags(page).open == []
    assert "reliability" not in page.split("</style>")[1]
    assert ("<h2>Rounds" in page) == (rounds > 0)


def test_two_hundred_labels_fit() -> None:
    labels = [f"label {i}" for i in range(200)]
    page = render_report(make_result(labels), make_facts(labels))
    assert "and 160 more labels" in page


def test_collector_passes_rows_on_and_counts_them(row: Callable[..., dict[str, Any]]) -> None:
    collector = Collector()
    kept = [row(0, source="seed", confidence=1.0), *(row(i, confidence=0.72) for i in range(50))]
    left = [row(i, confidence=1.0, reason=f"reason {i % 2}") for i in range(50)] + [row(1, confidence=float("nan"))]
    assert list(collector.watch_kept(kept)) == kept
    assert len(list(collector.watch_rejected(left))) == 51
    facts = collector.facts(threshold=0.6)
    assert facts.confidence_kept[14] == sum(facts.confidence_kept) == 50, "gold seeds are not scored"
    assert facts.confidence_left[19] == 50
    assert sum(facts.seed_counts.values()) == 1
    assert sum(facts.kept_counts.values()) == 50
    assert len(facts.kept) == 9, "three a label"
    assert [sample.reason for sample in facts.rejected].count("reason 0") == 3

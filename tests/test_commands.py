"""Scoring outside a run, over the deterministic engine of the tests."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from afdc.adapter import AdapterManifest
from afdc.engine_config import EngineConfig
from afdc.errors import AdapterError, InputError, UsageError
from afdc.inputs import read_examples, read_task
from afdc.task import Example, Task
from afdc_pipeline.context import SilentProgress
from afdc_pipeline.seams import Engine
from afdc_server import commands
from afdc_server.commands import (
    Labeller,
    OpenLabeller,
    base_model_name,
    build_report,
    evaluate,
    evaluate_examples,
    find_adapter,
    locate,
    predict,
    score,
    score_texts,
)
from tests.fakes.engine import FakeEngine

TICKETS = Path(__file__).parent.parent / "examples" / "support_tickets"
TASK = Task.model_validate({"labels": ["BILLING", "DELIVERY", "质量"]})


@pytest.fixture
def labeller() -> OpenLabeller:
    return OpenLabeller(FakeEngine(noise=0.1), TASK)


async def test_score_writes_a_line_for_every_text(
    labeller: OpenLabeller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "BATCH_TEXTS", 2)
    texts = ["about BILLING", "POISON", "about DELIVERY", "关于质量", "x"]
    summary = await score_texts(labeller, texts, tmp_path / "y.jsonl", SilentProgress())
    assert (summary.texts, summary.errors) == (5, 1)
    records = [json.loads(line) for line in (tmp_path / "y.jsonl").read_text().splitlines()]
    assert [record["text"] for record in records] == texts
    assert records[1] == {"text": "POISON", "error": "poisoned"}
    assert [records[i]["label"] for i in (0, 2, 3)] == ["BILLING", "DELIVERY", "质量"]
    first = records[0]
    assert set(first) == {"text", "label", "confidence", "probs", "label_logprobs"}
    assert sum(first["probs"].values()) == pytest.approx(1.0)
    assert first["confidence"] == max(first["probs"].values())
    assert sum(map(math.exp, first["label_logprobs"].values())) < 1, "full-vocabulary log-probs are not normalised"


async def test_a_bad_line_ends_before_the_engine_starts(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"no": 1}\n')
    with pytest.raises(InputError, match=r"x\.jsonl:2"):
        await score(Labeller(TASK), tmp_path / "x.jsonl", tmp_path / "y.jsonl", SilentProgress())
    assert not (tmp_path / "y.jsonl").exists()


async def test_an_output_without_a_place_ends_before_the_engine_starts(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UsageError, match="is a folder"):
        await score(Labeller(TASK), tmp_path / "x.jsonl", tmp_path, SilentProgress())
    with pytest.raises(UsageError, match="is the input itself"):
        await score(Labeller(TASK), tmp_path / "x.jsonl", tmp_path / "x.jsonl", SilentProgress())
    assert (tmp_path / "x.jsonl").read_text() == '{"text": "a"}\n'


async def test_gold_with_two_labels_for_a_text_ends_before_the_engine_starts(tmp_path: Path) -> None:
    one, other = TASK.names[:2]
    rows = [{"text": "a", "label": one}, {"text": " a", "label": other}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"x\.jsonl:2: the text has label"):
        await evaluate(Labeller(TASK), tmp_path / "x.jsonl", SilentProgress())


async def test_a_damaged_adapter_ends_before_the_engine_starts(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": ')
    manifest = {"name": "a", "job": "j", "round": 0, "base_model": "m", "base_revision": "r", "rank": 8}
    manifest |= {"task": {"labels": ["a", "b"]}, "template_hash": "h", "files": {"adapter_config.json": "0" * 64}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AdapterError, match="the manifest lists no adapter_model"):
        await predict(Labeller(None, adapter=tmp_path), ["hello"], SilentProgress())
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(AdapterError, match="is not an adapter's manifest") as caught:
        await predict(Labeller(None, adapter=tmp_path), ["hello"], SilentProgress())
    assert "http" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_evaluate_counts_rejected_texts_as_wrong(labeller: OpenLabeller) -> None:
    examples = [Example(text="BILLING 1", label="BILLING"), Example(text="DELIVERY", label="DELIVERY")]
    examples += [Example(text="POISON", label="质量"), Example(text="BILLING 2", label="DELIVERY")]
    report = await evaluate_examples(labeller, examples, SilentProgress())
    assert (report.n, report.errors, report.accuracy) == (4, 1, 0.5)
    assert report.model == "base model"
    assert [row.name for row in report.labels] == list(TASK.names)
    assert report.labels[0].precision == 0.5
    assert report.interval[0] < 0.5 < report.interval[1]
    assert sum(point.count for point in report.reliability) == 3


def test_report_of_perfect_predictions(labeller: OpenLabeller) -> None:
    report = build_report(labeller, np.eye(3), np.arange(3))
    assert (report.accuracy, report.macro_f1, report.ece) == (1.0, 1.0, 0.0)


def test_calibration_is_applied_and_impossible_labels_are_null() -> None:
    who = OpenLabeller(FakeEngine(), TASK, "a", temperature=2.0, prior=(0.0, math.log(4), 0.0))
    probs = who.calibrated(np.log([[0.2, 0.8, 0.0001]]))
    assert probs[0][0] == pytest.approx(probs[0][1])
    record = who._record("t", np.array([-1.0, -2.0, -np.inf]), np.array([0.7, 0.3, 0.0]))
    assert record["label_logprobs"]["质量"] is None


def test_locate_needs_a_task_or_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--task"):
        locate(Labeller(None))
    assert locate(Labeller(TASK, "m", None, EngineConfig())).model == "m"
    with pytest.raises(AdapterError, match="holds no adapter"):
        find_adapter(tmp_path)


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        (f"/root/.cache/huggingface/hub/models--Qwen--Qwen3-4B/snapshots/{'a1' * 20}", f"Qwen/Qwen3-4B@{'a1' * 20}"),
        ("/home/x/.cache/afdc/models/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
        ("/models/mine", "/models/mine"),
    ],
)
def test_the_base_model_is_found_again_by_its_name(stored: str, asked: str) -> None:
    manifest = AdapterManifest(
        name="a", job="j", round=1, base_model=stored, base_revision="r", rank=8, task=TASK, template_hash="h", files={}
    )
    assert base_model_name(manifest) == asked


def test_the_output_folder_of_a_run_stands_for_its_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    for name in ("manifest.json", "adapter_config.json"):
        (tmp_path / "adapter" / name).write_text("{}")
    assert find_adapter(tmp_path) == tmp_path / "adapter"
    assert find_adapter(tmp_path / "adapter") == tmp_path / "adapter"


@pytest.mark.engine
async def test_the_real_engine_labels_the_example_tickets(engine: Engine, tmp_path: Path) -> None:
    task = read_task(TICKETS / "task.json")
    who = OpenLabeller(engine, task)
    examples = read_examples(TICKETS / "eval.jsonl", task)
    texts = [example.text for example in examples] + ["x " * 2000]
    summary = await score_texts(who, texts, tmp_path / "y.jsonl", SilentProgress())
    assert (summary.texts, summary.errors) == (49, 1)
    records = [json.loads(line) for line in (tmp_path / "y.jsonl").read_text().splitlines()]
    assert "tokens" in records[-1]["error"], "a text that is too long says so and does not stop the others"
    assert all(sum(record["probs"].values()) == pytest.approx(1.0) for record in records[:-1])
    report = await evaluate_examples(who, examples, SilentProgress())
    assert report.n == 48
    assert report.accuracy == sum(r["label"] == e.label for r, e in zip(records, examples, strict=False)) / 48

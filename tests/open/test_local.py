"""`run_local` on an open task over real files: data set, card, report, result; and the commands on its adapter."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from afdc.adapter import read_manifest
from afdc.cli.summary import print_evaluation, print_prediction, print_result
from afdc.errors import InputError, UsageError
from afdc.result import RunResult
from afdc_pipeline.context import SilentProgress
from afdc_server.commands import Labeller, OpenLabeller, evaluate_examples, score
from afdc_server.export.dataset import verify_dataset
from afdc_server.local import RunRequest, plan_local, run_local
from tests.fakes.engine import FakeEngine
from tests.fakes.open_job import OPEN_TASK, open_config, open_gold, open_seeds, pairs
from tests.loop.test_local import World, write_jsonl


@pytest.fixture
def request_(tmp_path: Path) -> RunRequest:
    (tmp_path / "task.json").write_text(OPEN_TASK.model_dump_json())
    return RunRequest(
        seeds=write_jsonl(tmp_path / "s.jsonl", [{"text": s.text, "label": s.label} for s in open_seeds()]),
        eval=write_jsonl(tmp_path / "e.jsonl", [{"text": t, "label": a} for t, a in pairs(5, "gold")]),
        task=tmp_path / "task.json",
        out=tmp_path / "out",
        config=open_config(),
    )


def run(request: RunRequest) -> RunResult:
    return run_local(request, SilentProgress(), World().parts())


def printed(result: RunResult, out: Path) -> str:
    stream = io.StringIO()
    print_result(Console(file=stream, width=120), result, out)
    return stream.getvalue()


def test_a_run_leaves_prompts_and_completions(request_: RunRequest) -> None:
    result = run(request_)
    data = request_.out / "dataset"
    verify_dataset(data)
    rows = pq.read_table(data / "data").to_pylist()
    assert result.dataset is not None
    assert len(rows) == result.dataset.rows > 8
    assert {"answer", "answer_history", "agreement", "mean_logprob"} <= set(rows[0])
    assert not {"label", "intended", "distribution"} & set(rows[0])
    made = next(row for row in rows if row["source"] == "generated")
    [pair] = [
        row
        for row in pq.read_table(data / "prompt_completion").to_pylist()
        if row["prompt"][-1]["content"] == made["text"]
    ]
    assert set(pair) == {"prompt", "completion"}
    assert pair["prompt"][0] == {"role": "system", "content": OPEN_TASK.instruction}
    assert pair["completion"] == [{"role": "assistant", "content": made["answer"]}]
    messages = pq.read_table(data / "messages").to_pylist()
    assert [turn["role"] for turn in messages[0]["messages"]] == ["system", "user", "assistant"]
    assert "text" in pq.read_table(data / "rejected").column_names


def test_papers_report_and_summary_speak_of_answers(request_: RunRequest) -> None:
    result = run(request_)
    card = (request_.out / "dataset" / "README.md").read_text()
    report = (request_.out / "report.html").read_text()
    shown = printed(result, request_.out)
    assert "text-generation" in card
    assert "exact match on 5 gold examples" in card
    assert "token F1 on 5 gold examples" in card
    assert "distribution" not in card
    assert "free answers" in report
    assert "Exact match" in report
    assert "Rows of each label" not in report
    assert "Exact match on 5 gold texts" in shown
    assert "Token F1 on 5 gold texts" in shown
    stored = json.loads((request_.out / "result.json").read_bytes())
    assert stored["labels"] == []
    assert stored["eval"]["token_f1"]["final"] >= stored["eval"]["final"]
    assert json.loads((request_.out / "dataset" / "task.json").read_bytes())["labels"] is None


def test_the_adapter_knows_that_its_task_is_open(request_: RunRequest) -> None:
    run(request_)
    assert read_manifest(request_.out / "adapter").task == OPEN_TASK


def test_a_plan_counts_the_sampled_answers(request_: RunRequest) -> None:
    plan, _ = plan_local(request_)
    assert plan.candidates == 32
    assert plan.score_reads == 3 * (4 * 32 + 5 * 5)
    assert plan.completion_tokens > plan.score_reads


@pytest.mark.parametrize("config", [{"answer": {"max_tokens": 4}}, {"engine": {"max_model_len": 128}}])
def test_an_answer_that_is_too_long_is_named(request_: RunRequest, config: dict[str, Any]) -> None:
    write_jsonl(request_.seeds, [{"text": "short", "label": "word " * 200}, {"text": "other", "label": "word"}])
    with pytest.raises(InputError, match=r"word.* tokens and \d+ are allowed"):
        run(replace(request_, config=open_config(**config)))


def test_a_text_that_leaves_no_room_for_an_answer_is_named(request_: RunRequest) -> None:
    assert request_.eval is not None
    write_jsonl(request_.eval, [{"text": "many " * 100, "label": "word"}])
    with pytest.raises(InputError, match=r"many.* fit"):
        run(replace(request_, config=open_config(engine={"max_model_len": 128})))


async def opened() -> OpenLabeller:
    engine = FakeEngine()
    await engine.start()
    return OpenLabeller(engine, OPEN_TASK)


async def test_predict_prints_the_answer() -> None:
    records = await (await opened()).read(["a few words and gardeners", "a POISON text"])
    assert records[0]["answer"] == "gardeners"
    assert 0 < records[0]["confidence"] <= 1
    assert records[1]["error"] == "poisoned"
    stream = io.StringIO()
    print_prediction(Console(file=stream, width=100), records[0])
    assert "gardeners" in stream.getvalue()


async def test_eval_reports_exact_match_and_token_f1() -> None:
    report = await evaluate_examples(await opened(), open_gold(), SilentProgress())
    assert report.accuracy >= 0.5
    assert report.token_f1 is not None
    assert 0 < report.interval[0] < report.accuracy <= report.interval[1] + 1e-9
    assert report.labels == []
    stream = io.StringIO()
    print_evaluation(Console(file=stream, width=100), report)
    assert "exact match" in stream.getvalue()


async def test_score_refuses_an_open_task(tmp_path: Path) -> None:
    source = tmp_path / "x.txt"
    source.write_text("a text\n")
    with pytest.raises(UsageError, match="open"):
        await score(Labeller(OPEN_TASK), source, tmp_path / "y.jsonl", SilentProgress())

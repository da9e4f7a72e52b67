"""`run_local` over real files: what it writes, resumes and refuses. The engine and the trainer are the fakes."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from afdc.config import RunConfig
from afdc.errors import (
    AfdcError,
    ConflictError,
    InputError,
    InterruptedRunError,
    ModelError,
    StorageError,
    TrainerError,
    UsageError,
)
from afdc.layout import RunLayout
from afdc.training import TrainJob, TrainResult
from afdc_pipeline.context import SilentProgress
from afdc_pipeline.seams import EngineInfo, Progress
from afdc_server.local import RunRequest, plan_local, run_local
from afdc_server.local.job import Parts
from afdc_server.models import ModelRef
from tests.fakes.encoder import FakeEncoder
from tests.fakes.engine import FakeEngine
from tests.fakes.job import TASK, make_seeds, small_config
from tests.fakes.trainer import FakeTrainer

Edit = Callable[[dict[str, Any]], None]


class NamedEngine(FakeEngine):
    """The fake engine, serving the model that it was made for."""

    def __init__(self, model: ModelRef, **options: Any) -> None:
        super().__init__(**options)
        self.model = model

    async def start(self) -> EngineInfo:
        info = await super().start()
        return EngineInfo(**{**_fields(info), "model_path": self.model.path, "model_revision": self.model.revision})


def _fields(info: EngineInfo) -> dict[str, Any]:
    return {name: getattr(info, name) for name in info.__slots__}


class World:
    """Fakes that remember what was made of them."""

    def __init__(self, on_call: Callable[[str], None] | None = None) -> None:
        self.engines: list[NamedEngine] = []
        self.on_call = on_call
        self.trainer: Any = FakeTrainer(on_call)

    def parts(self) -> Parts:
        return Parts(self._engine, self._trainer, lambda info, _layout: FakeEncoder(TASK, info, self.on_call))

    def _engine(self, model: ModelRef, request: RunRequest, layout: RunLayout) -> NamedEngine:
        self.engines.append(NamedEngine(model, on_call=self.on_call))
        return self.engines[-1]

    def _trainer(self, layout: RunLayout, progress: Progress) -> Any:
        return self.trainer


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def request_of(tmp_path: Path) -> Callable[..., RunRequest]:
    """Makes a request on files in the test's folder."""

    def make(config: RunConfig | None = None, **changes: Any) -> RunRequest:
        seeds = write_jsonl(tmp_path / "seeds.jsonl", [{"text": s.text, "label": s.label} for s in make_seeds()])
        task = tmp_path / "task.json"
        task.write_text(TASK.model_dump_json())
        fields = {"seeds": seeds, "task": task, "out": tmp_path / "out", "config": config or small_config()}
        return RunRequest(**{**fields, **changes})

    return make


def run(request: RunRequest, world: World | None = None) -> Any:
    return run_local(request, SilentProgress(), (world or World()).parts())


def test_a_run_leaves_data_adapter_report_and_result(request_of: Callable[..., RunRequest]) -> None:
    request = request_of()
    result = run(request)
    stored = json.loads((request.out / "result.json").read_text())
    assert stored["status"] == result.status == "succeeded"
    assert stored["dataset"]["rows"] == result.dataset.rows > len(make_seeds())
    assert (request.out / "adapter" / "adapter_model.safetensors").is_file()
    assert "<html" in (request.out / "report.html").read_text()
    assert (request.out / "dataset" / "README.md").is_file()
    assert [r["round"] for r in stored["rounds"]] == [0, 1, 2]


def test_a_finished_run_is_shown_and_not_repeated(request_of: Callable[..., RunRequest]) -> None:
    request, again = request_of(), World()
    first = run(request)
    assert run(request, again) == first
    assert not again.engines


def test_an_interrupted_run_goes_on_and_ends_the_same(request_of: Callable[..., RunRequest], tmp_path: Path) -> None:
    def stop(call: str) -> None:
        if call.startswith("fit:") and call.endswith("-r1"):
            raise KeyboardInterrupt

    request = request_of()
    with pytest.raises(InterruptedRunError, match="same command"):
        run(request, World(stop))
    left = json.loads((request.out / "result.json").read_text())
    assert left["status"] == "interrupted"
    assert [one["round"] for one in left["rounds"]] == [0]
    again = World()
    result = run(request, again)
    assert not [call for call in again.engines[0].calls if call.startswith("generate")]
    undisturbed = run(request_of(out=tmp_path / "other"))
    assert [r.per_label for r in result.rounds] == [r.per_label for r in undisturbed.rounds]


def test_another_job_in_the_folder_is_refused_with_the_difference(request_of: Callable[..., RunRequest]) -> None:
    run(request_of())
    other = small_config(augment={"variants": 7, "rounds": 2, "context_seeds": 2})
    with pytest.raises(ConflictError, match=r"config\.augment\.variants was 6, now 7"):
        run(request_of(other))


def test_a_folder_with_other_files_is_refused(request_of: Callable[..., RunRequest], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(ConflictError, match="not a run"):
        run(request_of())
    assert os.listdir(tmp_path / "out") == ["thesis.tex"]


def test_seeds_inside_eval_are_an_error_with_the_line(request_of: Callable[..., RunRequest], tmp_path: Path) -> None:
    seed = make_seeds()[0]
    rows = [{"text": "something new", "label": "BETA"}, {"text": f"  {seed.text.upper()} ", "label": seed.label}]
    gold = write_jsonl(tmp_path / "eval.jsonl", rows)
    world = World()
    with pytest.raises(InputError, match=r"eval\.jsonl:2: .*repeats a seed"):
        run(request_of(eval=gold), world)
    assert not world.engines
    assert not (tmp_path / "out").exists()


def test_eval_texts_that_are_nearly_seeds_are_told_together(
    request_of: Callable[..., RunRequest], tmp_path: Path
) -> None:
    seeds = make_seeds()
    rows = [{"text": f"{seed.text} !", "label": seed.label} for seed in seeds[:2]]
    gold = write_jsonl(tmp_path / "eval.jsonl", [{"text": "something new", "label": "BETA"}, *rows])
    with pytest.raises(InputError, match=r"eval\.jsonl:2: .* is nearly .*\n  line 3: "):
        plan_local(request_of(eval=gold))
    far = small_config(augment={"near_duplicate": 1.0})
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": f"{seeds[0].text} and more", "label": "BETA"}])
    assert plan_local(request_of(far, eval=other))


def test_an_eval_text_with_two_labels_is_an_error(request_of: Callable[..., RunRequest], tmp_path: Path) -> None:
    rows = [{"text": "something new", "label": "BETA"}, {"text": "something  new", "label": "ALPHA"}]
    gold = write_jsonl(tmp_path / "eval.jsonl", rows)
    with pytest.raises(InputError, match=r"eval\.jsonl:2: the text has label 'ALPHA' here and 'BETA' on line 1"):
        plan_local(request_of(eval=gold))


@pytest.mark.parametrize("loop", [{"members": 0, "ensemble": False}, {"members": 1}, {"members": 3, "ensemble": False}])
def test_a_committee_of_one_is_refused(request_of: Callable[..., RunRequest], loop: dict[str, Any]) -> None:
    config = small_config(select={"strategy": "committee"}, loop=loop)
    with pytest.raises(UsageError, match=r"loop\.members"):
        plan_local(request_of(config))


def test_a_folder_that_cannot_be_read_is_a_storage_error(request_of: Callable[..., RunRequest], tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*File name too long"):
        run(request_of(out=tmp_path / ("x" * 300)))


def test_a_failed_training_leaves_a_result_that_says_so(request_of: Callable[..., RunRequest]) -> None:
    class Broken(FakeTrainer):
        async def fit(self, job: TrainJob) -> TrainResult:
            raise TrainerError("loss is not a number")

    world = World()
    world.trainer = Broken()
    request = request_of()
    with pytest.raises(TrainerError):
        run(request, world)
    stored = json.loads((request.out / "result.json").read_text())
    assert stored["status"] == "failed"
    assert "not a number" in stored["error"]


def test_a_full_disk_ends_in_one_message_and_loses_nothing(
    request_of: Callable[..., RunRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    request, real, count = request_of(), os.replace, iter(range(10**6))

    def full(*args: Any, **options: Any) -> None:
        if next(count) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(StorageError, match="No space left"):
            run(request)
    assert run(request).status == "succeeded"


def test_two_processes_cannot_work_on_one_folder(request_of: Callable[..., RunRequest]) -> None:
    request = request_of()
    seen: list[str] = []

    def second(call: str) -> None:
        if not seen:
            seen.append(call)
            with pytest.raises(ConflictError, match="another process"):
                run(request)

    run(request, World(second))
    assert seen


def test_the_plan_starts_nothing(request_of: Callable[..., RunRequest]) -> None:
    request = request_of()
    plan, _ = plan_local(request)
    assert plan.candidates == len(make_seeds()) * 6 * 2
    assert not request.out.exists()


def test_the_plan_says_what_was_read(request_of: Callable[..., RunRequest]) -> None:
    _, inputs = plan_local(request_of())
    assert inputs["seeds"] == len(make_seeds())
    assert sum(inputs["seeds_per_label"].values()) == inputs["seeds"]
    assert inputs["model"]


def test_the_plan_refuses_what_the_run_would(request_of: Callable[..., RunRequest], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model folder"):
        plan_local(request_of(small_config().model_copy(update={"model": "/nope"})))
    with pytest.raises(StorageError, match="cannot write"):
        plan_local(request_of(out=Path("/proc/nothing")))
    with pytest.raises(UsageError, match=r"train\.device = cuda"):
        plan_local(request_of(small_config(train={"device": "cuda"})))
    rows = [{"text": s.text, "label": s.label} for s in make_seeds()]
    rows[3]["text"] = "very long " * 3000
    with pytest.raises(InputError, match=r"long\.jsonl:4: .*tokens"):
        plan_local(request_of(seeds=write_jsonl(tmp_path / "long.jsonl", rows)))
    run(request_of())
    with pytest.raises(ConflictError, match=r"config\.loop\.rounds was"):
        plan_local(request_of(small_config(loop={"rounds": 7})))


def test_a_task_that_leaves_no_room_for_a_text_is_named(request_of: Callable[..., RunRequest], tmp_path: Path) -> None:
    wordy = tmp_path / "wordy.json"
    wordy.write_text(json.dumps({**TASK.model_dump(), "instruction": "word " * 9000}))
    with pytest.raises(InputError, match=r"wordy\.json: the instruction takes \d+ tokens"):
        plan_local(request_of(task=wordy))


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"null", b"[]"])
def test_a_damaged_identity_is_one_clear_message(request_of: Callable[..., RunRequest], content: bytes) -> None:
    request = request_of()
    run(request)
    (request.out / "state" / "job.json").write_bytes(content)
    with pytest.raises(ConflictError, match=r"job\.json is damaged"):
        run(request)


def test_a_damaged_result_is_written_anew(request_of: Callable[..., RunRequest]) -> None:
    request = request_of()
    first = run(request)
    (request.out / "result.json").write_bytes(b"{")
    assert run(request).dataset == first.dataset
    assert json.loads((request.out / "result.json").read_text())["status"] == "succeeded"


def test_every_error_has_an_exit_code() -> None:
    assert all(1 < kind.exit_code < 131 for kind in AfdcError.__subclasses__())


def test_a_seed_that_does_not_fit_is_named_before_an_engine_starts(
    request_of: Callable[..., RunRequest], tmp_path: Path
) -> None:
    rows = [{"text": s.text, "label": s.label} for s in make_seeds()]
    rows[3]["text"] = "very long " * 3000
    world = World()
    with pytest.raises(InputError, match=r"seeds2\.jsonl.*tokens"):
        run(request_of(seeds=write_jsonl(tmp_path / "seeds2.jsonl", rows)), world)
    assert not world.engines


def test_settings_of_memory_may_change_when_a_run_goes_on(request_of: Callable[..., RunRequest]) -> None:
    first = run(request_of())
    assert run(request_of(small_config(engine={"kv_cache_gib": 1.0}))) == first


def test_a_damaged_ledger_is_one_clear_message(request_of: Callable[..., RunRequest]) -> None:
    request = request_of()
    run(request)
    (request.out / "result.json").unlink()
    for path in (request.out / "state").glob("ledger.db*"):
        path.unlink()
    (request.out / "state" / "ledger.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError, match="ledger"):
        run(request)

"""The mean of the rounds' adapters is what a job hands out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from afdc.adapter import read_manifest
from afdc.presets import build_config
from afdc.result import RunResult
from afdc.task import Example, Task
from afdc_pipeline.seams import Scores
from afdc_pipeline.stages import average
from afdc_pipeline.stages.average import listed
from afdc_pipeline.state import LoopState
from tests.fakes.engine import FakeEngine
from tests.fakes.job import FakeJob, make_job, small_config
from tests.fakes.trainer import FakeTrainer
from tests.loop.losing import Losing, Refusing, named_seeds
from tests.loop.test_local import World, run, write_jsonl
from tests.loop.test_local import request_of as request_of

GOLD = tuple(Example(id=f"e{i}", text=f"note {i} {name} now", label=name) for i, name in enumerate(["ALPHA", "BETA"]))


def averaged(job: FakeJob) -> list[list[str]]:
    """Short names of the adapters that each averaging was given."""
    jobs = [one for one in job.trainer.jobs if one.average]
    return [[folder.name.removeprefix("job-test-").rsplit("-", 1)[0] for folder in one.average] for one in jobs]


def test_the_mean_of_the_rounds_is_handed_out_and_labels_nothing(tmp_path: Path) -> None:
    job = make_job(tmp_path / "on", eval=GOLD)
    state = job.run()
    assert averaged(job) == [["r1", "r2"]]
    assert (state.best.name, state.best.born) == ("avg", 2)
    assert state.best.served.startswith("job-test-avg-")
    last = state.history[-1]
    assert last.note == f"handed out: {state.best.served}, mean of r1 and r2"
    assert "train-avg" in last.seconds
    assert "-r2-" in last.adapter
    assert state.eval.final is not None
    assert f"score:{state.best.served}:{len(GOLD)}" in job.engine.calls
    pools = [call for call in job.engine.calls if call.startswith(f"score:{state.best.served}")]
    assert len(pools) == 1
    off = make_job(tmp_path / "off", small_config(loop={"average": False}), eval=GOLD)
    assert off.rows(off.run()) == job.rows(state)


def test_the_final_accuracy_is_that_of_the_mean(tmp_path: Path) -> None:
    class Knowing(FakeEngine):
        """The mean is right, every other adapter wrong."""

        async def score(self, texts: Sequence[str], task: Task, adapter: str | None = None) -> Scores:
            scores = await super().score(texts, task, adapter)
            if adapter and "-avg-" not in adapter and list(texts) == [one.text for one in GOLD]:
                return Scores(scores.logprobs[:, [1, 2, 0]], scores.errors)
            return scores

    state = make_job(tmp_path, engine=Knowing(noise=0.01), eval=GOLD).run()
    assert (state.eval.seeds_only, state.eval.final) == (0.0, 1.0)
    assert [one.eval and one.eval.accuracy for one in state.history] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("sections", [{"loop": {"average": False}}, {"loop": {"rounds": 1}}, {"loop": {"rounds": 0}}])
def test_switched_off_or_with_one_round_the_last_adapter_is_handed_out(
    tmp_path: Path, sections: dict[str, Any]
) -> None:
    job = make_job(tmp_path, small_config(**sections), eval=GOLD)
    state = job.run()
    assert not averaged(job)
    last = state.history[-1]
    assert (last.note, last.adapter) == ("", state.best.served)
    assert last.eval is None or state.eval.final == last.eval.accuracy


def test_the_paper_preset_does_not_average() -> None:
    assert build_config().loop.average
    assert not build_config("paper").loop.average


THREE = {"rounds": 3, "patience": 9}


def test_a_round_that_lost_has_its_share_in_a_mean_that_did_not(tmp_path: Path) -> None:
    job = make_job(tmp_path, engine=Losing("-r2-"), seeds=named_seeds(holdout=1))
    state = job.run()
    assert [one.activated for one in state.history] == [True, True, False]
    assert averaged(job) == [["r1", "r2"]]
    assert state.best.name == "avg"
    assert f"handed out: {state.best.served}, mean of r1 and r2 (100.0% of held-out gold, " in state.history[-1].note


def test_a_mean_that_loses_is_not_handed_out(tmp_path: Path) -> None:
    job = make_job(tmp_path, engine=Losing("-avg-"), seeds=named_seeds(holdout=1), eval=GOLD)
    state = job.run()
    assert averaged(job) == [["r1", "r2"]]
    assert (state.best.name, state.best.served) == ("r2", state.history[-1].adapter)
    note = state.history[-1].note
    assert note.startswith("the mean of r1 and r2 is worse on held-out gold (0.0% of held-out gold, log loss ")
    assert note.endswith(") and is not handed out")
    assert not [
        call for call in job.engine.calls if call.startswith("score:job-test-avg") and call.endswith(f":{len(GOLD)}")
    ]


def test_the_rounds_that_passed_are_tried_where_all_of_them_lose(tmp_path: Path) -> None:
    job = make_job(tmp_path, small_config(loop=THREE), engine=Losing("-r2-", "-avg-"), seeds=named_seeds(holdout=1))
    state = job.run()
    assert [one.activated for one in state.history] == [True, True, False, True]
    assert averaged(job) == [["r1", "r2", "r3"], ["r1", "r3"]]
    assert (state.best.name, state.best.born, job.trainer.jobs[-1].round) == ("avg1", 3, 3)


def test_one_round_that_passed_is_handed_out_where_the_mean_of_all_loses(tmp_path: Path) -> None:
    job = make_job(tmp_path, engine=Losing("-r2-", "-avg-"), seeds=named_seeds(holdout=1))
    state = job.run()
    assert averaged(job) == [["r1", "r2"]]
    assert state.best.name == "r1"


def test_a_loop_that_ends_with_a_refused_adapter_averages_those_before_it(tmp_path: Path) -> None:
    job = make_job(tmp_path, small_config(loop={"rounds": 3}), engine=Refusing("-r3-"))
    state = job.run()
    assert "probe failed" in state.stop_reason
    assert averaged(job) == [["r1", "r2"]]
    assert (state.best.name, state.best.born) == ("avg", 2)


def test_a_refused_mean_leaves_the_last_adapter_and_says_why(tmp_path: Path) -> None:
    state = make_job(tmp_path, engine=Refusing("-avg-"), eval=GOLD).run()
    last = state.history[-1]
    assert (state.best.name, state.best.served) == ("r2", last.adapter)
    assert last.note == "the mean of r1 and r2 was not activated: probe failed"
    assert last.eval is not None
    assert state.eval.final == last.eval.accuracy
    again = make_job(tmp_path, eval=GOLD)
    assert again.run().best == state.best, "what was refused stays refused"
    assert not again.trainer.jobs


def test_the_mean_is_scored_and_calibrated_by_the_means_of_the_folds(tmp_path: Path) -> None:
    config = small_config(loop={"folds": 2})
    job = make_job(tmp_path, config, engine=FakeEngine(noise=0.5), seeds=named_seeds())
    state = job.run()
    assert averaged(job) == [["r1-f0", "r2-f0"], ["r1-f1", "r2-f1"], ["r1", "r2"]]
    fits = {one.name.removeprefix("job-test-"): one for one in job.trainer.jobs}
    assert fits["avg"].temperature == state.best.temperature
    assert fits["avg"].temperature not in (1.0, fits["r1"].temperature, fits["r2"].temperature)
    assert fits["avg-f0"].temperature == 1.0
    assert read_manifest(job.ctx.layout.adapters / state.best.served).temperature == state.best.temperature
    assert "of held-out gold" in state.history[-1].note


def test_a_mean_that_loses_out_of_fold_is_not_handed_out(tmp_path: Path) -> None:
    job = make_job(tmp_path, small_config(loop={"folds": 2}), engine=Losing("-avg-f", noise=0.1), seeds=named_seeds())
    state = job.run()
    assert state.best.name == "r2"
    assert "worse on held-out gold" in state.history[-1].note


def test_a_fold_that_a_round_lacks_is_left_out_of_the_score(tmp_path: Path) -> None:
    job = make_job(tmp_path, small_config(loop={"folds": 2}), engine=Refusing("-r1-f0-"), seeds=named_seeds())
    state = job.run()
    assert averaged(job) == [["r1-f1", "r2-f1"], ["r1", "r2"]]
    assert state.best.name == "avg" or "worse on held-out gold" in state.history[-1].note


def test_a_sample_of_the_texts_is_enough_for_one_temperature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(average, "CALIBRATION_TEXTS", 24)
    config = small_config(loop={"folds": 2})
    job = make_job(tmp_path, config, engine=FakeEngine(noise=0.5), seeds=named_seeds())
    state = job.run()
    assert 0 < texts_read_by_means(job) < state.pool.size / 2


def test_where_distributions_are_learnt_the_means_read_the_seeds_alone(tmp_path: Path) -> None:
    config = small_config(loop={"folds": 2}, select={"soft_targets": True})
    job = make_job(tmp_path, config, engine=FakeEngine(noise=0.5), seeds=named_seeds())
    job.run()
    assert texts_read_by_means(job) == 0


def texts_read_by_means(job: FakeJob) -> int:
    """Texts of D1 that the means of the folds' adapters were asked about."""
    asked = [call.split(":") for call in job.engine.calls if call.startswith("score:job-test-avg-f")]
    return sum(int(count) for _, _, count in asked) - len(named_seeds())


@pytest.mark.parametrize("point", ["fit:job-test-avg", "load:job-test-avg", "score:job-test-avg"])
def test_a_job_stopped_while_it_averages_ends_the_same(tmp_path: Path, point: str) -> None:
    def stop(call: str) -> None:
        if call.startswith(point):
            raise KeyboardInterrupt

    first = make_job(tmp_path / "a", engine=FakeEngine(on_call=stop), trainer=FakeTrainer(stop), eval=GOLD)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    again, whole = make_job(tmp_path / "a", eval=GOLD), make_job(tmp_path / "b", eval=GOLD)
    ended, undisturbed = again.run(), whole.run()
    assert averaged(again) == ([] if point != "fit:job-test-avg" else [["r1", "r2"]])
    assert _outcome(ended) == _outcome(undisturbed)
    assert again.rows(ended) == whole.rows(undisturbed)


def _outcome(state: LoopState) -> tuple[Any, ...]:
    return state.best, state.eval, [one.note for one in state.history], [one.adapter for one in state.history]


def test_what_a_run_leaves_is_the_mean(request_of: Callable[..., Any], tmp_path: Path) -> None:
    gold = write_jsonl(tmp_path / "eval.jsonl", [{"text": one.text, "label": one.label or ""} for one in GOLD])
    request, world = request_of(eval=gold), World()
    result: RunResult = run(request, world)
    assert result.adapter is not None
    assert "-avg-" in result.adapter.name
    assert read_manifest(request.out / "adapter").name == result.adapter.name
    assert result.adapter.name in (request.out / "dataset" / "README.md").read_text()
    report = (request.out / "report.html").read_text()
    assert f"handed out: {result.adapter.name}, mean of r1 and r2" in report
    assert "reliability" in report.casefold()
    stored = json.loads((request.out / "result.json").read_text())
    assert "mean of r1 and r2" in stored["rounds"][-1]["note"]
    assert result.usage.trainer_seconds > 0


def test_names_are_listed_as_one_says_them() -> None:
    assert [listed(names) for names in (["r1"], ["r1", "r2"], ["r1", "r2", "r4"])] == [
        "r1",
        "r1 and r2",
        "r1, r2 and r4",
    ]

"""The plan behind --dry-run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from afdc.config import RunConfig
from afdc.presets import build_config
from afdc.task import Task
from afdc_pipeline.estimate import Plan, PlanInputs, make_plan, trie_reads
from afdc_pipeline.rates import rates_for
from afdc_pipeline.rows import Seed

TASK = Task.model_validate({"instruction": "What is asked for?", "labels": ["place", "person", "number"]})


def inputs(per_label: int = 8, **changes: Any) -> PlanInputs:
    seeds = [
        Seed(f"{label}{i}", f"question {i} about a {label}?", label, holdout=i >= 8)
        for label in TASK.names
        for i in range(per_label)
    ]
    return PlanInputs(**{"task": TASK, "seeds": seeds, "device": "cpu", "parameters": 135e6, **changes})


FREE = {"agreement": False, "unanimous": False}
EIGHTEEN = {"augment": {"variants": 18}}


def test_counts_of_the_default_preset() -> None:
    given = inputs(unlabeled_rows=100, eval_rows=50, label_paths=[(1,), (2,), (3,)])
    plan = make_plan(build_config(), given)
    texts = 24 * 42 + 100
    assert plan.candidates == texts
    assert plan.requests == 24 * 7  # 42 draws a seed, six to a request
    assert plan.adapters == 3 + 2 + 3 * 2  # two folds in each of three rounds
    sample = texts // 2  # for the temperature of the mean, which is scored on eval and seeds, too
    reads = 3 + 2 + 3 + 2  # members, rounds, what the folds of three rounds leave out and what those of two keep
    assert plan.score_reads == reads * texts + sample + 5 * 50 + 4 * 24
    soft = build_config("default", {"select": {"soft_targets": True}})
    assert make_plan(soft, given).score_reads == plan.score_reads - sample  # the seeds alone give it
    assert plan.selected == round(texts * 0.75)


def test_the_paper_preset_scores_with_the_base_and_selects_without_agreement() -> None:
    plan = make_plan(build_config("paper"), inputs(label_paths=[(1,), (2,), (3,)]))
    assert plan.adapters == 3
    assert plan.score_reads == 4 * 432
    assert plan.selected == 432


@pytest.mark.parametrize(("parameters", "style"), [(135e6, "continuation"), (4e9, "chat")])
def test_prompts_are_planned_in_the_style_that_the_run_will_pick(parameters: float, style: str) -> None:
    planned = make_plan(build_config(), inputs(parameters=parameters))
    assert planned.prompt_tokens == _with_style(style, parameters).prompt_tokens
    other = {"chat": "continuation", "continuation": "chat"}[style]
    assert planned.prompt_tokens != _with_style(other, parameters).prompt_tokens


def _with_style(style: str, parameters: float) -> Plan:
    return make_plan(build_config("default", {"augment": {"prompt_style": style}}), inputs(parameters=parameters))


def test_held_out_seeds_are_not_varied() -> None:
    assert make_plan(build_config(), inputs(10)).candidates == 24 * 42


def test_caps_and_rounds_shape_the_plan() -> None:
    def plan(**layers: Any) -> Any:
        return make_plan(build_config("default", layers), inputs())

    assert plan(select={"target_rows": 20}).selected == 20
    assert plan(select={"per_label": 5}).selected == 15
    assert plan(augment={"rounds": 3}).candidates == 3 * plan().candidates
    assert plan(augment={"rounds": 0}).completion_tokens == 0
    assert plan(loop={"rounds": 5}).training_tokens > plan().training_tokens


def test_adapters_that_learn_from_all_rows_train_longer() -> None:
    def trained(soft: bool = True, **layers: Any) -> int:
        config = build_config("default", {"select": {"soft_targets": soft}}, layers)
        return make_plan(config, inputs()).training_tokens

    assert trained() > trained(train={"all_rows": False})
    assert trained(train={"all_rows": False}) == trained(soft=False)
    unchecked = {"encoder": {"labeller": False}}
    assert trained(**unchecked) == trained(**unchecked, train={"all_rows": False})


def test_label_names_take_their_time_with_every_fit_of_the_encoder() -> None:
    def seconds(repeat: int, folds: int) -> float:
        layers = {"encoder": {"name_repeat": repeat}, "loop": {"folds": folds}}
        return make_plan(build_config("default", layers), inputs()).seconds["encode"]

    whole, folded = (seconds(4, folds) - seconds(0, folds) for folds in (0, 2))
    assert folded > whole > 0


def test_a_target_beyond_the_plan_is_planned_for() -> None:
    plain = make_plan(build_config("default", EIGHTEEN), inputs())
    assert plain.selected < plain.candidates
    grown = make_plan(build_config("default", EIGHTEEN, {"select": {"target_rows": 4 * plain.selected}}), inputs())
    assert (plain.augment_rounds, grown.augment_rounds) == (1, 4)
    assert grown.selected == 4 * plain.selected
    assert (grown.candidates, grown.requests) == (4 * plain.candidates, 4 * plain.requests)
    real = build_config("default", EIGHTEEN, {"select": {"target_rows": 4 * plain.selected, **FREE}})
    given = inputs(unlabeled_rows=2 * plain.candidates)
    assert make_plan(real, given).augment_rounds == 1
    more = build_config("default", EIGHTEEN, {"select": {"target_rows": 6 * plain.candidates, **FREE}})
    assert make_plan(more, given).augment_rounds == 4, "real texts come once"
    capped = make_plan(build_config("default", EIGHTEEN, {"select": {"target_rows": 900, "per_label": 9}}), inputs())
    assert capped.augment_rounds == 1
    only_real = build_config("default", EIGHTEEN, {"select": {"target_rows": 900}, "augment": {"rounds": 0}})
    assert make_plan(only_real, inputs(unlabeled_rows=500)).augment_rounds == 0


def test_seconds_add_up_and_follow_the_machine() -> None:
    small = make_plan(RunConfig(), inputs())
    parts = [value for name, value in small.seconds.items() if name != "total"]
    assert small.seconds["total"] == pytest.approx(sum(parts), abs=0.3)
    large = make_plan(RunConfig(), inputs(parameters=270e6))
    assert large.seconds["generate"] == pytest.approx(2 * small.seconds["generate"], rel=0.01)
    gpu = make_plan(RunConfig(), inputs(device="cuda"))
    assert gpu.seconds["generate"] < small.seconds["generate"]
    assert rates_for("cuda", 1e8) == rates_for("cuda", 1e9)
    assert json.loads(json.dumps(small.to_dict()))["candidates"] == small.candidates


def test_trie_reads() -> None:
    assert trie_reads([(1,), (2,)]) == 1
    assert trie_reads([(1, 5), (1, 6), (2,)]) == 2
    assert trie_reads([(i,) for i in range(200)]) == 2
    assert trie_reads([(1, 2, 9), (1, 2, 3, 9)]) == 4

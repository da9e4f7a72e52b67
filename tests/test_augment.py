"""Which requests an augment round makes, and what their completions become."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from afdc.config import AugmentConfig
from afdc.task import Task
from afdc_pipeline.augment import (
    PlannedRequest,
    draw_groups,
    estimate_tokens,
    plan_requests,
    refused_candidates,
    screen,
    to_candidates,
)
from afdc_pipeline.filters import Style, TextLimits
from afdc_pipeline.prompts import choose_break_mark
from afdc_pipeline.rows import Seed, candidate_id
from afdc_pipeline.seams import Completion, Generated

TASK = Task.model_validate({"instruction": "Sort.", "labels": [{"name": "a", "description": "first"}, "b"]})
SEEDS = [Seed(id=f"s{i}", text=f"text number {i}", label="ab"[i % 2], holdout=i >= 16) for i in range(18)]


def plan(seeds: list[Seed] = SEEDS, style: Style = "continuation", seed: int = 0, **more: Any) -> list[PlannedRequest]:
    config = AugmentConfig(**{"variants": 8, **more.pop("config", {})})
    made = plan_requests(seeds, TASK, config, "job", 1, seed, style, **more)
    assert len(made) == len(list(made))
    return list(made)


def test_every_seed_gets_its_variants_once() -> None:
    planned = plan()
    draws = {(p.parent, p.first_draw + i) for p in planned for i in range(p.request.n)}
    assert draws == {(f"s{i}", draw) for i in range(16) for draw in range(8)}
    assert len({p.request.id for p in planned}) == len(planned) == 32


def test_the_same_plan_is_made_again_and_another_seed_makes_another() -> None:
    assert plan() == plan()
    first, second = plan(seed=0)[0].request, plan(seed=1)[0].request
    assert first.prompt != second.prompt
    assert first.sampling.seed != second.sampling.seed


def test_context_is_of_the_same_label_varied_and_not_held_out() -> None:
    planned = plan()
    labels = {seed.id: seed.label for seed in SEEDS}
    for one in planned:
        assert one.seed_ids[-1] == one.parent
        assert len(set(one.seed_ids)) == 5
        assert {labels[seed_id] for seed_id in one.seed_ids} == {one.label}
        assert not {"s16", "s17"} & set(one.seed_ids)
    assert len({one.seed_ids for one in planned}) > 30


def test_a_list_is_continued_behind_its_last_item() -> None:
    request = plan(config={"context_seeds": 2})[0].request
    assert isinstance(request.prompt, str)
    assert request.prompt.startswith("Sort.\n\na (first):\n- text number ")
    assert request.prompt.endswith("\n- text number 0\n-")
    assert request.sampling.stop == ("\n",)


def test_texts_with_line_breaks_stay_on_one_line() -> None:
    seeds = [Seed(id=str(i), text=f"line {i}\n\nend", label="a") for i in range(3)]
    one = plan(seeds)[0]
    assert isinstance(one.request.prompt, str)
    assert one.request.prompt.endswith("- line 0\\n\\nend\n-")
    answers = Generated(one.request.id, (Completion(" first\\nsecond", 5, True),) * one.request.n)
    assert to_candidates(one, answers)[0].text == "first\nsecond"
    assert choose_break_mark(["a\nb", "a \\n <br> \u23ce\u23ce"]) == "\u23ce" * 3


def test_a_chat_prompt_shows_the_examples() -> None:
    one = plan(style="chat")[0]
    assert not isinstance(one.request.prompt, str)
    system, user = one.request.prompt
    assert (system.role, user.role) == ("system", "user")
    assert "Label: a (first)" in user.content
    assert user.content.count("text number") == 5
    assert one.request.sampling.stop == ()


def test_length_follows_the_longest_seed() -> None:
    assert plan()[0].request.sampling.max_tokens == 24
    long = [Seed(id="x", text="word " * 60, label="a"), *SEEDS]
    assert plan(long, estimate=lambda text: len(text.split()))[0].request.sampling.max_tokens == 120
    assert plan(config={"max_tokens": 9})[0].request.sampling.max_tokens == 9
    assert estimate_tokens("我要退款") == 8


def test_context_gives_way_to_the_model_length() -> None:
    seeds = [Seed(id=f"x{i}", text=f"{i} " + "word " * 60, label="a") for i in range(6)]
    shown = plan(seeds, max_model_len=560, estimate=lambda text: len(text.split()))[0].seed_ids
    assert 1 < len(shown) < 5
    assert shown[-1] == "x0"
    assert plan(seeds, max_model_len=128)[0].seed_ids == ("x0",)


def test_a_plan_is_a_sequence() -> None:
    made = plan_requests(SEEDS, TASK, AugmentConfig(variants=8), "job", 1, 0, "continuation")
    assert made[-1] == list(made)[-1]
    assert made[30:99] == list(made)[30:]
    assert len(plan_requests([], TASK, AugmentConfig(), "job", 1, 0, "chat")) == 0


def test_groups_are_even() -> None:
    assert draw_groups(18) == [(0, 6), (6, 6), (12, 6)]
    assert [n for _, n in draw_groups(7)] == [3, 4]
    assert draw_groups(1) == [(0, 1)]


def test_completions_become_candidates_with_reasons() -> None:
    one = plan(adapter="job-r1")[1]
    answers = tuple(Completion(f" text of draw {i}\n", 5, i != 2, -1.5) for i in range(one.request.n))
    generated = Generated(one.request.id, answers)
    limits = TextLimits.from_seeds(SEEDS, TASK)
    screened = screen(one, generated, limits, TASK)
    assert [s.reason for s in screened] == [None, None, "unfinished", None]
    first = screened[0].candidate
    assert first.id == candidate_id("job", 1, one.parent, one.first_draw)
    assert (first.text, first.intended, first.generator) == ("text of draw 0", one.label, "job-r1")
    assert (first.parent, first.seed_ids, first.tokens, first.mean_logprob) == (one.parent, one.seed_ids, 5, -1.5)
    assert json.loads(first.sampling)["seed"] == one.request.sampling.seed
    assert len(first.prompt_hash) == 16
    assert [s.candidate for s in screened] == to_candidates(one, generated, TASK.names)


def test_a_rejected_request_has_no_candidates() -> None:
    assert to_candidates(plan()[0], Generated("x", error="too long")) == []


def test_a_rejected_request_leaves_a_row_for_each_draw() -> None:
    one = plan()[1]
    rows = refused_candidates(one)
    answers = Generated(one.request.id, (Completion("a text", 5, True, -1.5),) * one.request.n)
    blank = [replace(row, text="", tokens=0, mean_logprob=None) for row in to_candidates(one, answers)]
    assert rows == blank

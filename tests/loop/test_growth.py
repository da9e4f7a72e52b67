"""A target beyond the planned texts: further augment rounds are drawn, scored and selected until it can be met."""

from __future__ import annotations

from pathlib import Path

from afdc.task import Task
from afdc_pipeline.growth import MIN_BOUND
from afdc_pipeline.seams import GenerateRequest, Scores
from tests.fakes.engine import WORDS, Completion, FakeEngine, stable_rng
from tests.fakes.job import TASK, growing_config, make_job


def drawn_rounds(calls: list[str]) -> set[str]:
    return {call.rsplit("-", 2)[1] for call in calls if call.startswith("generate:")}


def test_a_target_is_met_by_further_rounds(tmp_path: Path) -> None:
    job = make_job(tmp_path, growing_config(150))
    state = job.run()
    kept, rejected = job.rows(state)
    first, last = state.history
    assert (first.selected, last.selected) == (150, 150)
    assert len([row for row in kept if row["source"] == "generated"]) == 150
    assert first.candidates > 150
    assert "became 150 of 150 in" in first.note
    assert state.stop_reason.startswith(("target_rows", "rounds"))
    assert {"a1", "a2", "a3"} <= drawn_rounds(job.engine.calls)
    ids = [row["id"] for row in kept + rejected]
    assert len(ids) == len(set(ids)), "a draw is one candidate"
    texts = [row["text"] for row in kept]
    assert len(texts) == len(set(texts)), "what an earlier round accepted is not accepted again"


def test_no_text_is_scored_twice_by_the_same_labeller(tmp_path: Path) -> None:
    seen: list[tuple[str, str | None]] = []

    class Counting(FakeEngine):
        async def score(self, texts: list[str], task: Task, adapter: str | None = None) -> Scores:  # type: ignore[override]  # lists only
            seen.extend((text, adapter) for text in texts)
            return await super().score(texts, task, adapter)

    make_job(tmp_path, growing_config(150), engine=Counting()).run()
    assert len(seen) == len(set(seen))


def test_a_later_round_draws_for_itself_and_rows_tell_their_story_from_then_on(tmp_path: Path) -> None:
    class Doubting(FakeEngine):
        """The adapter of round 1 takes every third text for another label."""

        async def score(self, texts: list[str], task: Task, adapter: str | None = None) -> Scores:  # type: ignore[override]  # lists only
            scores = await super().score(texts, task, adapter)
            if "-r1-" in (adapter or ""):
                wrong = [stable_rng(text).random() < 1 / 3 for text in texts]
                scores.logprobs[wrong] = scores.logprobs[wrong][:, [1, 2, 0]]
            return scores

    config = growing_config(60, loop={"rounds": 2, "members": 1, "ensemble": False})
    job = make_job(tmp_path, config, engine=Doubting(noise=0.1))
    state = job.run()
    first, second, *_ = state.history
    assert first.note == ""
    assert "became 60 of 60" in second.note
    assert "generate-2" in second.seconds
    assert second.flip_rate is not None
    kept, rejected = job.rows(state)
    rows = [row for row in kept + rejected if row["distribution"] and row["source"] == "generated"]
    assert all(len(row["label_history"]) == len(state.history) for row in rows)
    assert {row["augment_round"] for row in rows if not row["label_history"][0]} == {
        row["augment_round"] for row in rows
    } - {1}
    assert {row["accepted_round"] for row in kept if row["augment_round"] > 1} == {1}


def test_rounds_that_add_little_end_it_and_say_so(tmp_path: Path) -> None:
    class Repeating(FakeEngine):
        def _complete(self, request: GenerateRequest, draw: int) -> Completion:
            first = request.id.replace("-a2-", "-a1-").replace("-a3-", "-a1-")
            sampling = type(request.sampling)(seed=draw)
            return super()._complete(GenerateRequest(first, request.prompt, request.n, sampling), draw)

    job = make_job(tmp_path, growing_config(150), engine=Repeating())
    state = job.run()
    assert state.history[0].selected < 150
    assert "rows for 72 drawn texts" in state.history[0].note
    assert drawn_rounds(job.engine.calls) <= {"a1", "a2", "a3"}


def test_caps_that_cannot_be_passed_are_told_and_nothing_is_drawn(tmp_path: Path) -> None:
    job = make_job(tmp_path, growing_config(150, select={"per_label": 10}))
    state = job.run()
    assert "no further augment round: the caps of select allow 30 rows" in state.history[0].note
    assert drawn_rounds(job.engine.calls) == {"a1"}


def test_half_of_a_token_budget_is_left_for_training(tmp_path: Path) -> None:
    free = make_job(tmp_path / "free", growing_config(400))
    free.run()
    usage = free.engine.usage()
    budget = (usage.prompt_tokens + usage.completion_tokens) // 2
    tight = growing_config(400, loop={"rounds": 1, "members": 2, "token_budget": budget})
    first = make_job(tmp_path / "tight", tight).run()
    assert "half of the token budget" in first.history[0].note
    assert len(first.history) == 2, "self-training still had its share"
    again = make_job(tmp_path / "tight", tight).run()
    assert [one.note for one in again.history] == [one.note for one in first.history]


def test_seconds_count_for_the_round_that_drew(tmp_path: Path) -> None:
    state = make_job(tmp_path, growing_config(150)).run()
    names = set(state.history[0].seconds)
    assert {"generate-1", "generate-2", "filter-2", "select", "select-a2", "score-m0-a2"} <= names
    assert not any(name.startswith("generate") for name in state.history[1].seconds)


def test_real_texts_do_not_count_for_the_yield_of_a_round(tmp_path: Path) -> None:
    texts = [f"{TASK.names[n % 3]} {' '.join(stable_rng('real', n).choice(WORDS, 6))}" for n in range(90)]
    config = growing_config(
        250,
        augment={"variants": 1},
        loop={"rounds": 1, "members": 1},
        select={"target_rows": 250, "agreement": False, "balance": False},
    )
    real = {"unlabeled": lambda: iter(texts), "unlabeled_digest": "real"}
    state = make_job(tmp_path, config, **real).run()
    assert "became 250 of 250" in state.history[0].note
    assert state.extra > MIN_BOUND, "twice what 12 texts a round need, and not what 12 and 90 would"
    again = make_job(tmp_path, config, **real).run()
    assert [one.note for one in again.history] == [one.note for one in state.history]

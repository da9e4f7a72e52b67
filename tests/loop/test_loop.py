"""The loop over real files and database, with the deterministic fakes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from afdc.adapter import AdapterManifest
from afdc.errors import AdapterError, ConflictError, StorageError
from afdc.presets import build_config
from afdc.task import Example
from afdc_pipeline.outcome import kept_rows
from tests.fakes.engine import FakeEngine
from tests.fakes.job import TASK, make_job, make_seeds, small_config


def test_every_seed_and_only_agreeing_variants_are_kept(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    state = job.run()
    kept, rejected = job.rows(state)
    seeds = [row for row in kept if row["source"] == "seed"]
    assert [row["id"] for row in seeds] == [seed.id for seed in make_seeds()]
    variants = [row for row in kept if row["source"] == "generated"]
    assert variants
    assert all(row["label"] == row["intended"] for row in variants)
    assert all(row["reason"] != "kept" for row in rejected)
    assert not {row["id"] for row in kept} & {row["id"] for row in rejected}


def test_rows_carry_their_whole_story(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    state = job.run()
    row = next(row for row in job.rows(state)[0] if row["source"] == "generated")
    assert len(row["label_history"]) == len(state.history) == 3
    assert row["parent"] in {seed.id for seed in make_seeds()}
    assert abs(sum(row["distribution"]) - 1) < 1e-6
    assert row["prompt_hash"]
    assert row["sampling"]
    assert "r2" in row["scorer"]


def test_seeds_train_round_zero_and_every_later_round(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    job.run()
    trained = [fit for fit in job.trainer.jobs if not fit.average]
    assert [fit.name for fit in trained] == ["job-test-m0", "job-test-m1", "job-test-r1", "job-test-r2"]
    for fit in trained:
        rows = fit.rows.read_text().splitlines()
        assert sum('"gold":true' in row for row in rows) == len(make_seeds())
    assert len({fit.seed for fit in trained}) == 4


def test_where_labels_have_settled_no_further_round_is_trained(tmp_path: Path) -> None:
    job = make_job(tmp_path, small_config(loop={"min_flip_rate": 1.0}))
    state = job.run()
    assert state.stop_reason.startswith("flip_rate")
    assert len(state.history) == 2
    assert [fit.name for fit in job.trainer.jobs] == ["job-test-m0", "job-test-m1", "job-test-r1"]
    assert state.best.name == "r1"
    assert job.rows(state)[0]


def test_the_paper_preset_scores_with_the_base_model_first(tmp_path: Path) -> None:
    config = build_config("paper", {"augment": {"variants": 6}, "loop": {"rounds": 1}, "select": {"threshold": 0.6}})
    job = make_job(tmp_path, config)
    state = job.run()
    scores = [call for call in job.engine.calls if call.startswith("score:")]
    assert scores[0].startswith("score:None:")
    assert [fit.name for fit in job.trainer.jobs] == ["job-test-r1"]
    rows = [row for row in job.rows(state)[0] if row["source"] == "generated"]
    assert rows
    assert all(row["confidence"] > 0.6 for row in rows)
    left = [row for row in job.rows(state)[1] if row["label"] is not None]
    assert all(row["confidence"] <= 0.6 for row in left)


def test_eval_texts_are_scored_for_base_seeds_and_final(tmp_path: Path) -> None:
    gold = (
        Example(id="e1", text="note ALPHA now", label="ALPHA"),
        Example(id="e2", text="note BETA now", label="BETA"),
    )
    state = make_job(tmp_path, eval=gold).run()
    assert state.eval.n == 2
    assert None not in (state.eval.base, state.eval.seeds_only, state.eval.final)
    assert all(result.eval is not None for result in state.history)


def test_an_adapter_that_loses_held_out_gold_is_not_handed_out(tmp_path: Path) -> None:
    class Worse(FakeEngine):
        async def score(self, texts, task, adapter=None):  # type: ignore[no-untyped-def] # the fake's own signature
            scores = await super().score(texts, task, adapter)
            if adapter and "-r1-" in adapter and list(texts) == held:
                return type(scores)(scores.logprobs[:, [1, 2, 0]])
            return scores

    seeds = make_seeds(holdout=1)
    seeds = tuple(type(s)(s.id, f"{s.text} {s.label}", s.label, s.holdout) for s in seeds)
    held = [seed.text for seed in seeds if seed.holdout]
    config = small_config(loop={"rounds": 1, "members": 1})
    state = make_job(tmp_path, config, engine=Worse(noise=0.1), seeds=seeds).run()
    assert state.history[1].activated is False
    assert "-m0-" in state.best.served


def test_a_refused_adapter_keeps_the_old_one_and_ends_the_loop(tmp_path: Path) -> None:
    class Refusing(FakeEngine):
        async def load_adapter(self, folder: Path) -> AdapterManifest:
            if "-r1-" in folder.name:
                raise AdapterError("probe failed")
            return await super().load_adapter(folder)

    state = make_job(tmp_path, engine=Refusing()).run()
    assert "probe failed" in state.stop_reason
    assert "-m0-" in state.best.served
    assert len(state.history) == 1


def test_poisoned_texts_are_rejected_with_a_reason(tmp_path: Path) -> None:
    texts = ["a fine ALPHA note", "a POISON BETA note", "another GAMMA note"]
    job = make_job(tmp_path, unlabeled=lambda: iter(texts), unlabeled_digest="x")
    state = job.run()
    kept, rejected = job.rows(state)
    assert [row["reason"] for row in rejected if "POISON" in row["text"]] == ["engine_rejected"]
    assert any(row["source"] == "unlabeled" for row in kept)


def test_variants_that_repeat_eval_texts_are_dropped_as_leaks(tmp_path: Path) -> None:
    first = make_job(tmp_path / "a")
    kept, _ = first.rows(first.run())
    leaked = next(row for row in kept if row["source"] == "generated")
    gold = (Example(id="e1", text=leaked["text"], label=leaked["label"]),)
    job = make_job(tmp_path / "b", eval=gold)
    state = job.run()
    kept, rejected = job.rows(state)
    assert leaked["text"] not in {row["text"] for row in kept if row["source"] != "seed"}
    assert [row["reason"] for row in rejected if row["text"] == leaked["text"]] == ["eval_leak"]


def test_a_damaged_row_file_is_named_and_not_used(tmp_path: Path) -> None:
    make_job(tmp_path).run()
    for victim in (tmp_path / "state" / "chunks").rglob("*.parquet"):
        victim.write_bytes(victim.read_bytes()[:-20])
    job = make_job(tmp_path)
    with pytest.raises(StorageError, match="damaged"):
        job.rows(job.run())


def test_a_process_that_was_replaced_publishes_nothing(tmp_path: Path) -> None:
    old = make_job(tmp_path)
    make_job(tmp_path)
    with pytest.raises(ConflictError, match="taken over"):
        old.run()


def test_events_are_gapless(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    job.run()
    ids = [number for number, _, _ in job.ctx.ledger.events()]  # type: ignore[attr-defined] # SqlLedger reads events
    assert ids == list(range(1, len(ids) + 1))


def test_labels_are_those_of_the_task(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    state = job.run()
    assert {row["label"] for row in job.rows(state)[0]} <= set(TASK.names)
    assert asyncio.run(job.engine.health()) == "ready"


@pytest.mark.parametrize("strategy", ["confidence", "least_confidence", "margin", "entropy", "committee", "diversity"])
def test_every_strategy_runs_and_keeps_the_target(tmp_path: Path, strategy: str) -> None:
    config = small_config(
        augment={"variants": 6, "rounds": 1},
        loop={"rounds": 1, "members": 2},
        select={"strategy": strategy, "target_rows": 6},
    )
    state = make_job(tmp_path, config).run()
    assert state.history[-1].selected == 6
    assert "target_rows" in state.stop_reason or "rounds" in state.stop_reason


def test_combined_labels_count_the_label_a_text_was_written_for(tmp_path: Path) -> None:
    """Every row is kept, the intended label gains; the reported agreement is that of the labellers alone."""
    broad = {"agreement": False, "soft_targets": True, "balance": False}
    states, rows = {}, {}
    for name in ("scored", "combined"):
        job = make_job(
            tmp_path / name, small_config(select={**broad, "combine": name == "combined"}, loop={"rounds": 0})
        )
        states[name] = job.run()
        rows[name] = {row["id"]: row for row in kept_rows(job.ctx, states[name]) if row["source"] == "generated"}
    assert rows["scored"].keys() == rows["combined"].keys()
    gains = []
    for key, before in rows["scored"].items():
        after, at = rows["combined"][key], TASK.names.index(before["intended"])
        gains.append(after["distribution"][at] - before["distribution"][at])
        assert after["label"] in (before["label"], before["intended"])
    assert min(gains) >= -1e-6
    assert max(gains) > 0.01
    assert states["scored"].history[0].agreement == states["combined"].history[0].agreement

"""Whole runs: what is published, that it repeats, and how it fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from afdc.adapter import WEIGHTS_FILE, read_manifest, verify_adapter
from afdc.errors import TrainerError
from afdc.training import TrainJob
from afdc_server.trainer import SubprocessTrainer
from tests.trainer.conftest import JobMaker, codec_of
from tests.trainer.fits import fit, fit_here, weights_of

pytestmark = pytest.mark.trainer


def peft_logprobs(job: TrainJob, folder: Path, text: str, paths: Sequence[tuple[int, ...]] = ()) -> list[float]:
    """Label scores, or those of `paths`, in plain transformers and PEFT: one teacher-forced sequence each."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    codec = codec_of(job.model, job.task)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32), folder
    ).eval()
    scores = []
    for ids in paths or codec.scored_ids:
        prompt = codec.prompt_ids(text)
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
        scores.append(sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(ids)))
    return scores


async def test_a_round_publishes_an_adapter_that_plain_peft_reads_alike(packaged: Path, make_job: JobMaker) -> None:
    seen: list[tuple[int, int, float]] = []
    job = make_job(packaged, config={"dropout": 0.0}, probes=("Who was Homer ?",))
    trainer = SubprocessTrainer(job.result.parent / "logs", lambda *step: seen.append(step))
    result = await trainer.fit(job)
    assert result.adapter is not None
    manifest = verify_adapter(result.adapter)
    assert result.adapter.parent == job.adapters
    assert result.adapter.name == manifest.name == f"job-r1-{manifest.files[WEIGHTS_FILE][:12]}"
    assert [step for step, _, _ in seen] == [1, 2, 3, 4] == list(range(1, result.steps + 1))
    assert result.losses[-1] < result.losses[0]
    assert result.rows == 6
    assert not list(job.work.glob("*"))
    for probe in manifest.probes:
        assert list(probe.logprobs) == pytest.approx(peft_logprobs(job, result.adapter, probe.text), abs=1e-3)


async def test_the_same_job_gives_the_same_bytes_and_another_seed_others(tiny: Path, make_job: JobMaker) -> None:
    first, second, other = make_job(tiny, "a"), make_job(tiny, "b"), make_job(tiny, "c", seed=4)
    same = weights_of(await fit(first))
    assert weights_of(fit_here(second)) == same
    assert weights_of(fit_here(other)) != same


async def test_a_finished_job_is_not_run_again_and_a_damaged_adapter_is_made_again(
    tiny: Path, make_job: JobMaker
) -> None:
    job = make_job(tiny)
    result = await fit(job)
    progress = job.result.parent / "progress.jsonl"
    progress.unlink()
    assert await fit(job) == result
    assert not progress.exists()
    assert result.adapter is not None
    shutil.rmtree(result.adapter)
    assert (await fit(job)).adapter == result.adapter
    assert progress.exists()


def test_other_rows_under_the_same_job_are_trained_on_anew(tiny: Path, make_job: JobMaker) -> None:
    job = make_job(tiny, config={"checkpoint_every": 1})
    first = fit_here(job)
    lines = job.rows.read_text(encoding="utf-8").splitlines(keepends=True)
    job.rows.write_text("".join(lines[:4]), encoding="utf-8")
    second = fit_here(job)
    assert (first.rows, second.rows, second.resumed_at_step) == (6, 4, 0)
    assert weights_of(second) != weights_of(first)
    assert fit_here(job) == second
    assert len(list(job.adapters.iterdir())) == 2


async def test_a_damaged_adapter_is_set_aside_and_published_again(tiny: Path, make_job: JobMaker) -> None:
    job = make_job(tiny)
    result = await fit(job)
    assert result.adapter is not None
    whole, torn = weights_of(result), b"torn"
    (result.adapter / WEIGHTS_FILE).write_bytes(torn)
    again = await fit(job)
    assert again.adapter == result.adapter
    assert weights_of(again) == whole
    aside = job.adapters / f".damaged-{result.adapter.name}-1"
    assert (aside / WEIGHTS_FILE).read_bytes() == torn
    assert str(aside) in (job.result.parent / "logs" / "trainer-job-r1.log").read_text(encoding="utf-8")


def test_the_same_weights_calibrated_otherwise_have_the_new_temperature(tiny: Path, make_job: JobMaker) -> None:
    before = fit_here(make_job(tiny, "a", temperature=2.0))
    assert before.adapter is not None
    after = fit_here(make_job(tiny, "b", temperature=3.5, adapters=before.adapter.parent))
    assert after.adapter == before.adapter
    assert verify_adapter(before.adapter).temperature == 3.5


def test_a_round_may_continue_from_the_last_adapter(tiny: Path, make_job: JobMaker) -> None:
    first = fit_here(make_job(tiny, "a"))
    on = fit_here(make_job(tiny, "b", continue_from=first.adapter))
    assert on.losses[0] < first.losses[0]
    with pytest.raises(TrainerError, match="another rank"):
        fit_here(make_job(tiny, "c", config={"rank": 16}, continue_from=first.adapter))


def test_failures_leave_a_reason_and_no_adapter(tiny: Path, make_job: JobMaker, tmp_path: Path) -> None:
    jobs = {
        "is not the engine's": make_job(tiny, "template", template_hash="0" * 64),
        "cannot be loaded": make_job(tiny, "model").model_copy(update={"model": tmp_path}),
        "gradient's norm": make_job(tiny, "nan", config={"learning_rate": 1.0, "weight_decay": 100.0}, epochs=40),
    }
    for reason, job in jobs.items():
        with pytest.raises(TrainerError, match=reason):
            fit_here(job)
        assert json.loads(job.result.read_bytes())["status"] == "failed"
        assert not list(job.adapters.glob("*"))


def test_the_manifest_names_where_the_adapter_comes_from(tiny: Path, make_job: JobMaker) -> None:
    job = make_job(tiny, round=2, member=1)
    result = fit_here(job)
    assert result.adapter is not None
    manifest = read_manifest(result.adapter)
    assert (manifest.job, manifest.round, manifest.member) == ("job", 2, 1)
    assert (manifest.base_model, manifest.base_revision) == (str(tiny), "main")
    assert manifest.template_hash == job.template_hash
    config = json.loads((result.adapter / "adapter_config.json").read_bytes())
    assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]

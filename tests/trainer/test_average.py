"""The mean of adapters: its arithmetic, and whole jobs that publish one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from afdc.adapter import MATRICES, WEIGHTS_FILE, read_manifest, verify_adapter
from afdc.errors import TrainerError
from afdc.files import write_json
from afdc.task import Task
from afdc.training import TrainJob, TrainResult, TrainRow
from afdc_trainer.__main__ import PROCESSES_VARIABLE, processes
from afdc_trainer.average import Update, mean_update
from tests.trainer.conftest import JobMaker, codec_of
from tests.trainer.fits import fit, fit_here, weights_of

pytestmark = pytest.mark.trainer

OPEN = Task(instruction="Name the product.", labels=None)


def update(seed: int, rank: int = 4, size: tuple[int, int] = (24, 40), scale: float = 2.0) -> Update:
    generator = torch.Generator().manual_seed(seed)
    out, inner = size
    return Update(torch.randn(rank, inner, generator=generator), torch.randn(out, rank, generator=generator), scale)


def full(one: Update) -> Tensor:
    return one.scale * one.b.double() @ one.a.double()


def product(factors: tuple[Tensor, Tensor], scale: float) -> Tensor:
    a, b = factors
    assert a.dtype == b.dtype == torch.float32
    return scale * b.double() @ a.double()


def gap(found: Tensor, wanted: Tensor) -> float:
    """Relative distance."""
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_the_mean_of_equal_updates_is_that_update(copies: int) -> None:
    one = update(0)
    assert gap(product(mean_update([one] * copies, 4, 2.0), 2.0), full(one)) < 1e-6


def test_a_rank_that_holds_all_reproduces_the_mean() -> None:
    several = [update(0), update(1, rank=8, scale=0.5), update(2, rank=1)]
    mean = sum(full(one) for one in several) / 3
    assert gap(product(mean_update(several, 16, 4.0), 4.0), torch.as_tensor(mean)) < 1e-6


def test_a_smaller_rank_is_the_nearest_of_its_rank() -> None:
    several = [update(0), update(1)]
    mean = (full(several[0]) + full(several[1])) / 2
    u, singular, vt = torch.linalg.svd(mean)
    nearest = (u[:, :4] * singular[:4]) @ vt[:4]
    assert gap(product(mean_update(several, 4, 2.0), 2.0), nearest) < 1e-6


def test_neither_the_split_into_factors_nor_the_scale_changes_the_mean() -> None:
    first, second = update(0), update(1)
    split = [Update(first.a * 50, first.b / 50, first.scale), Update(second.a, second.b / 8, second.scale * 8)]
    wanted = product(mean_update([first, second], 4, 2.0), 2.0)
    assert gap(product(mean_update(split, 4, 2.0), 2.0), wanted) < 1e-6
    assert gap(product(mean_update([first, second], 4, 0.125), 0.125), wanted) < 1e-6
    assert gap(product(mean_update([second, first], 4, 2.0), 2.0), wanted) < 1e-6


def test_a_layer_narrower_than_the_rank_is_filled_up_with_zeros() -> None:
    several = [update(seed, rank=16, size=(3, 40)) for seed in (0, 1)]
    a, b = mean_update(several, 16, 2.0)
    assert (tuple(a.shape), tuple(b.shape)) == ((16, 40), (3, 16))
    assert not a[3:].any()
    assert gap(product((a, b), 2.0), (full(several[0]) + full(several[1])) / 2) < 1e-6


def test_the_mean_of_untrained_updates_is_none() -> None:
    one = update(0)
    a, b = mean_update([Update(one.a, torch.zeros_like(one.b), 2.0)] * 2, 4, 2.0)
    assert not product((a, b), 2.0).any()


def trained(make_job: JobMaker, model: Path, count: int = 2, **fields: Any) -> tuple[Path, ...]:
    """Adapters that differ by their seed, of a learning rate that moves the model."""
    config = {"dropout": 0.0, "learning_rate": 5e-3}
    found = []
    for number in range(count):
        result = fit_here(make_job(model, f"one{number}", config=config, seed=number, **fields))
        assert result.adapter is not None
        found.append(result.adapter)
    return tuple(found)


def average_job(
    make_job: JobMaker, model: Path, adapters: Sequence[Path], folder: str = "avg", **fields: Any
) -> TrainJob:
    return make_job(model, folder, name="job-avg", round=2, average=tuple(adapters), temperature=1.7, **fields)


def merged_logprobs(job: TrainJob, text: str) -> list[float]:
    """Label scores of the base model with the mean of the updates of `job.average` added to its weights by hand."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32).eval()
    states = [load_file(folder / WEIGHTS_FILE) for folder in job.average]
    scale = job.config.alpha / read_manifest(job.average[0]).rank
    for name in (name for name in states[0] if name.endswith(MATRICES[0])):
        layer = name.removesuffix(MATRICES[0])
        change = sum(scale * state[layer + MATRICES[1]] @ state[name] for state in states) / len(states)
        model.get_submodule(layer.removeprefix("base_model.model.").rstrip(".")).weight.data += change
    codec, scores = codec_of(job.model, job.task), []
    prompt = codec.prompt_ids(text)
    for ids in codec.scored_ids:
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
        scores.append(sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(ids)))
    return scores


async def test_the_published_mean_scores_as_the_mean_update_in_the_base(packaged: Path, make_job: JobMaker) -> None:
    adapters = trained(make_job, packaged)
    exact = average_job(make_job, packaged, adapters, "exact", config={"rank": 16, "alpha": 32})
    result = await fit(exact)
    assert (result.rows, result.steps, result.tokens, result.losses) == (0, 0, 0, ())
    assert result.adapter is not None
    manifest = verify_adapter(result.adapter)
    assert manifest.name == result.adapter.name == f"job-avg-{manifest.files[WEIGHTS_FILE][:12]}"
    assert (manifest.round, manifest.rank, manifest.temperature) == (2, 16, 1.7)
    apart = 0.0
    wanted = [merged_logprobs(exact, probe.text) for probe in manifest.probes]
    for probe, scores in zip(manifest.probes, wanted, strict=True):
        assert list(probe.logprobs) == pytest.approx(scores, abs=2e-3)
    for folder in adapters:
        for probe, scores in zip(read_manifest(folder).probes, wanted, strict=True):
            apart = max(apart, *(abs(a - b) for a, b in zip(probe.logprobs, scores, strict=True)))
    assert apart > 0.1, "the mean is another model than those that it is of"
    cut = fit_here(average_job(make_job, packaged, adapters, "cut"))
    assert cut.adapter is not None
    for probe, scores in zip(read_manifest(cut.adapter).probes, wanted, strict=True):
        assert list(probe.logprobs) == pytest.approx(scores, abs=0.3)


def test_the_same_adapters_give_the_same_bytes_and_a_finished_mean_is_not_made_again(
    tiny: Path, make_job: JobMaker
) -> None:
    adapters = trained(make_job, tiny)
    first, second = (average_job(make_job, tiny, adapters, folder) for folder in ("a", "b"))
    result = fit_here(first)
    assert weights_of(fit_here(second)) == weights_of(result)
    assert fit_here(first) == result
    assert not (first.result.parent / "progress.jsonl").exists()
    other = fit_here(average_job(make_job, tiny, adapters[:1], "c"))
    assert weights_of(other) != weights_of(result)


def test_adapters_of_another_model_or_of_other_layers_are_refused(
    tiny: Path, make_job: JobMaker, tmp_path: Path
) -> None:
    (adapter,) = trained(make_job, tiny, 1)
    with pytest.raises(TrainerError, match=r"was trained on .* at main and cannot be averaged with .* at v2"):
        fit_here(average_job(make_job, tiny, [adapter], "revision", model_revision="v2"))
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    wider = tmp_path / "wider"
    shape = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, tie_word_embeddings=True, **shape)
    ).save_pretrained(wider)
    tokenizer.save_pretrained(wider)
    job = average_job(make_job, wider, [adapter], "layers")
    with pytest.raises(TrainerError, match=r"differ in 6 of the layers that carry LoRA, for example .*down_proj"):
        fit_here(job)
    assert not list(job.adapters.glob("*"))
    (adapter / WEIGHTS_FILE).write_bytes(b"torn")
    with pytest.raises(TrainerError, match="does not have the hash"):
        fit_here(average_job(make_job, tiny, [adapter], "damaged"))


def test_the_mean_of_an_open_task_has_the_answers_of_its_probes(tiny: Path, make_job: JobMaker) -> None:
    rows = [TrainRow(text="The kettle leaks", completion="kettle", gold=True)]
    fields = {"task": OPEN, "template_hash": codec_of(tiny, OPEN).template_hash, "probes": (rows[0].text,)}

    def of_rows(job: TrainJob) -> TrainResult:
        job.rows.write_bytes(b"".join(row.to_line() for row in rows))
        return fit_here(job)

    adapters = []
    for seed in (0, 1):
        adapter = of_rows(make_job(tiny, f"one{seed}", seed=seed, **fields)).adapter
        assert adapter is not None
        adapters.append(adapter)
    result = of_rows(average_job(make_job, tiny, adapters, **fields))
    assert result.adapter is not None
    assert [probe.answer for probe in verify_adapter(result.adapter).probes] == ["kettle"]


def test_a_mean_is_made_by_one_process(
    tiny: Path, make_job: JobMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROCESSES_VARIABLE, "2")
    assert processes(make_job(tiny)) == 2
    job = average_job(make_job, tiny, [tmp_path / "a"])
    assert processes(job) == 1
    write_json(tmp_path / "job.json", job.model_dump(mode="json"))
    assert TrainJob.model_validate_json((tmp_path / "job.json").read_bytes()) == job

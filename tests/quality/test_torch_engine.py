"""The engine on plain transformers, with a tiny random model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afdc.engine_config import EngineConfig
from afdc.errors import AdapterError
from afdc.prompting import PromptCodec, encode_continuation
from afdc.task import Example, Task
from afdc.training import TrainJob, TrainRow
from afdc_pipeline.seams import Generated, GenerateRequest, Sampling
from afdc_server.models import resolve_model

pytestmark = pytest.mark.trainer
TASK = Task.model_validate({"instruction": "Sort.", "labels": ["human", "a place", "number", "number of things"]})
PROMPTS = ["One two three", "A", "The old man and the sea is a short novel of nineteen fifty", "x y z"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of width 64, random weights."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from afdc_server.packaged import packaged_model

    folder = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(packaged_model())
    torch.manual_seed(1)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, tie_word_embeddings=True, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
async def engine(tiny: Path) -> Any:
    from benchmarks.quality.torch_engine import TorchEngine

    engine = TorchEngine(resolve_model(str(tiny), "cpu"), EngineConfig(device="cpu", dtype="float32"))
    await engine.start()
    return engine


def request(index: int, n: int = 3, **sampling: Any) -> GenerateRequest:
    settings = {"temperature": 0.8, "top_p": 0.9, "max_tokens": 12, "seed": 100 + index, **sampling}
    return GenerateRequest(f"r{index}", PROMPTS[index], n, Sampling(**settings))


async def ask(engine: Any, requests: list[GenerateRequest]) -> dict[str, Generated]:
    return {one.id: one async for one in engine.generate(requests)}


async def test_draws_are_those_of_the_whole_model_step_by_step(engine: Any, tiny: Path) -> None:
    """Sequences that join and leave a running batch continue as if each were alone and nothing were cached."""
    engine._decoder.width = 5  # noqa: SLF001,RUF100  # few places: prompts must wait and join
    answers = await ask(engine, [request(i) for i in range(len(PROMPTS))])
    for index in range(len(PROMPTS)):
        for number, completion in enumerate(answers[f"r{index}"].completions):
            assert (completion.text, completion.tokens) == naive(tiny, request(index), number)
            assert completion.mean_logprob is not None
            assert completion.mean_logprob < 0


def naive(tiny: Path, one: GenerateRequest, number: int) -> tuple[str, int]:
    """A full forward pass a token, by transformers alone, with the same random numbers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.quality.sampling import TRIES, sample

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    s = one.sampling
    numbers = np.random.default_rng([s.seed, number]).random((s.max_tokens, TRIES), dtype=np.float32)
    ids = encode_continuation(tokenizer, str(one.prompt))
    new: list[int] = []
    for step in range(s.max_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids + new])).logits[:, -1].float()
        settings = torch.tensor([s.temperature]), torch.tensor([s.top_p])
        new.append(int(sample(logits, *settings, torch.from_numpy(numbers[step : step + 1]))[0]))
        if new[-1] == tokenizer.eos_token_id:
            return tokenizer.decode(new[:-1], skip_special_tokens=True), len(new)
    return tokenizer.decode(new, skip_special_tokens=True), len(new)


async def test_a_stop_string_ends_the_text_and_is_not_in_it(engine: Any) -> None:
    whole = (await ask(engine, [request(0, 1)]))["r0"].completions[0]
    stop = whole.text[len(whole.text) // 2 :][:2]
    cut = (await ask(engine, [request(0, 1, stop=(stop,))]))["r0"].completions[0]
    assert cut.finished
    assert not whole.finished
    assert cut.text == whole.text[: whole.text.index(stop)]


async def test_a_prompt_too_long_is_refused_and_the_others_run(engine: Any) -> None:
    long = GenerateRequest("long", "word " * 3000, 1, Sampling(max_tokens=4))
    answers = await ask(engine, [long, request(1, 1, max_tokens=4)])
    assert "tokens" in answers["long"].error
    assert len(answers["r1"].completions) == 1


async def test_scores_are_the_label_logprobs_of_the_model(engine: Any, tiny: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    codec = PromptCodec(AutoTokenizer.from_pretrained(tiny), TASK)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    texts = ["Who wrote Faust ?", "Where ?", "word " * 3000]
    scores = await engine.score(texts, TASK)
    assert set(scores.errors) == {2}
    assert np.isnan(scores.logprobs[2]).all()
    for row, text in zip(scores.logprobs, texts[:2], strict=False):
        for label, path in enumerate(codec.scored_ids):
            ids = [*codec.prompt_ids(text), *path]
            with torch.no_grad():
                logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            at = torch.arange(len(ids) - len(path) - 1, len(ids) - 1)
            assert row[label] == pytest.approx(float(logprobs[at, torch.tensor(path)].sum()), abs=1e-4)


async def test_seeds_are_earlier_turns_of_the_prompt(engine: Any) -> None:
    from benchmarks.quality.in_context import few_shot_codec

    seeds = [Example(text=f"Question {i} ?", label=TASK.names[i % 4]) for i in range(8)]
    codec, shown = few_shot_codec(engine.tokenizer, TASK, seeds, 2048)
    prompt = engine.tokenizer.decode(codec.prompt_ids("Why ?"))
    assert shown == 8
    assert prompt.index("Question 1 ?") < prompt.rindex("a place") < prompt.index("Question 6 ?")
    assert prompt.endswith(engine.tokenizer.decode(PromptCodec(engine.tokenizer, TASK).suffix_ids))
    assert few_shot_codec(engine.tokenizer, TASK, seeds, len(codec.prefix_ids) + 200)[1] < 8
    assert np.isfinite(engine.score_prompts(["Why ?"], codec).logprobs).all()


def test_calibration_takes_a_prompts_own_prior_out() -> None:
    from benchmarks.quality.in_context import calibrate

    prior = np.array([[0.7, 0.2, 0.1]])
    assert calibrate(prior, prior) == pytest.approx(np.full((1, 3), 1 / 3))


async def test_adapters_come_and_go(engine: Any, tiny: Path, tmp_path: Path) -> None:
    from benchmarks.quality.trainers import InsideTrainer

    base = (await engine.score(["Who ?"], TASK)).logprobs
    result = await InsideTrainer().fit(make_job(engine, tiny, tmp_path))
    assert result.adapter is not None
    manifest = await engine.load_adapter(result.adapter)
    tuned = (await engine.score(["Who ?"], TASK, manifest.name)).logprobs
    assert np.abs(tuned - base).max() > 1e-3
    assert np.array_equal((await engine.score(["Who ?"], TASK)).logprobs, base)
    await engine.unload_adapter(manifest.name)
    with pytest.raises(AdapterError, match="no adapter"):
        await engine.score(["Who ?"], TASK, manifest.name)


def make_job(engine: Any, tiny: Path, folder: Path) -> TrainJob:
    rows = folder / "rows.jsonl"
    rows.write_text(TrainRow(text="Who ?", targets={0: 1.0}).model_dump_json() + "\n")
    return TrainJob.model_validate(
        {
            "name": "a",
            "job": "j",
            "round": 0,
            "model": tiny,
            "model_revision": engine.info.model_revision,
            "task": TASK,
            "template_hash": engine.template_hash(TASK),
            "rows": rows,
            "epochs": 3,
            "seed": 1,
            "config": {"rank": 8, "alpha": 32, "learning_rate": 1e-2, "dtype": "float32", "device": "cpu"},
            "probes": ["Who ?"],
            "max_tokens": 512,
            "work": folder / "work",
            "adapters": folder / "adapters",
            "result": folder / "result.json",
        }
    )

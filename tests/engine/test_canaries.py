"""Facts about vLLM that the engine relies on. A failure after an upgrade says which assumption no longer holds."""

from __future__ import annotations

import asyncio
import itertools
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from afdc.prompting import PromptCodec

pytestmark = pytest.mark.engine

IDS = itertools.count(1)
ADAPTER_IDS = itertools.count(10_000)


@pytest.fixture
def llm(engine: Any) -> Any:
    return engine.supervisor.backend.llm


@pytest.fixture
def prompt(codec: PromptCodec) -> list[int]:
    return codec.prompt_ids("Canaries sing in the mine, and so does this rather long sentence about nothing at all.")


async def ask(llm: Any, prompt: list[int], lora: LoRARequest | None = None, **options: Any) -> Any:
    params = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **options)
    stream = llm.generate(tokens_input(prompt), params, f"canary{next(IDS)}", lora_request=lora)
    return [output async for output in stream][-1]


def values(output: Any, ids: list[int]) -> list[float]:
    return [output.outputs[0].logprobs[0][token].logprob for token in ids]


async def test_logprob_token_ids_are_raw_and_ignore_the_temperature(llm: Any, prompt: list[int]) -> None:
    ids = [1, 2, 300, 4000]
    cold = await ask(llm, prompt, max_tokens=1, temperature=0.0, logprob_token_ids=ids, detokenize=False)
    hot = await ask(llm, prompt, max_tokens=1, temperature=1.7, logprob_token_ids=ids, detokenize=False)
    assert values(cold, ids) == pytest.approx(values(hot, ids), abs=1e-4)


async def test_a_read_takes_128_ids_and_not_129(llm: Any, prompt: list[int]) -> None:
    output = await ask(llm, prompt, max_tokens=1, temperature=0.0, logprob_token_ids=list(range(128)))
    assert len(values(output, list(range(128)))) == 128
    with pytest.raises(Exception, match="128"):
        await ask(llm, prompt, max_tokens=1, temperature=0.0, logprob_token_ids=list(range(129)))


async def test_reads_and_draws_with_logprobs_0_share_a_batch(llm: Any, prompt: list[int]) -> None:
    ids = list(range(50))
    draws = [ask(llm, prompt, max_tokens=6, temperature=1.0, logprobs=0) for _ in range(4)]
    reads = [ask(llm, prompt, max_tokens=1, temperature=0.0, logprob_token_ids=ids) for _ in range(4)]
    answers = await asyncio.gather(*itertools.chain(*zip(draws, reads, strict=True)))
    assert all(math.isfinite(answer.outputs[0].cumulative_logprob) for answer in answers[::2])
    assert all(math.isfinite(value) for answer in answers[1::2] for value in values(answer, ids))


async def test_draw_i_of_n_is_the_single_draw_with_seed_plus_i(llm: Any, prompt: list[int]) -> None:
    options = {"max_tokens": 8, "temperature": 1.0}
    together = await ask(llm, prompt, n=3, seed=40, **options)
    alone = [await ask(llm, prompt, n=1, seed=40 + i, **options) for i in range(3)]
    assert [output.index for output in together.outputs] == [0, 1, 2]
    assert [list(o.token_ids) for o in together.outputs] == [list(a.outputs[0].token_ids) for a in alone]


async def test_greedy_with_n_above_one_is_refused() -> None:
    with pytest.raises(Exception, match="n must be 1"):
        SamplingParams(n=2, temperature=0.0)


async def test_siblings_share_the_prompt_in_the_same_step(llm: Any, codec: PromptCodec) -> None:
    fresh = codec.prompt_ids("A text that no other test has scored, long enough to fill several blocks. " * 4)
    reads = [ask(llm, [*fresh, i], max_tokens=1, temperature=0.0, logprob_token_ids=[5]) for i in range(6)]
    cached = sorted(output.num_cached_tokens for output in await asyncio.gather(*reads))
    assert cached[1] >= len(fresh) - 32


async def test_a_seeded_draw_with_a_long_prompt_in_a_full_batch_does_not_kill_the_engine(llm: Any) -> None:
    """Whole-prompt prefill: a chunked one would raise "CPU Generator does not use offset" in the engine."""
    asked = [ask(llm, [7 + i] * 480, max_tokens=4, temperature=1.0, seed=i) for i in range(16)]
    assert len(await asyncio.gather(*asked)) == 16
    assert not llm.errored


async def test_steps_are_counted_while_a_request_is_unfinished(engine: Any, prompt: list[int]) -> None:
    backend = engine.supervisor.backend
    before = backend.steps()
    await ask(backend.llm, prompt, max_tokens=20, temperature=1.0, ignore_eos=True)
    assert backend.steps() - before >= 20


async def test_the_prefix_cache_is_keyed_by_the_adapter_name_and_path_and_not_by_its_weights(
    llm: Any, adapters: tuple[Path, Path], prompt: list[int], tmp_path: Path
) -> None:
    """Why an adapter's name carries its hash: under a used name vLLM serves what the old weights computed."""
    cached = []
    prompt = prompt * 2
    for name, source in (("same", adapters[0]), ("same", adapters[1]), ("other", adapters[1])):
        folder = shutil.copytree(source, tmp_path / "adapter", dirs_exist_ok=True)
        lora = LoRARequest(name, next(ADAPTER_IDS), str(folder))
        await llm.add_lora(lora)
        output = await ask(llm, prompt, lora, max_tokens=1, temperature=0.0, logprob_token_ids=[5])
        cached.append(output.num_cached_tokens)
        await llm.remove_lora(lora.lora_int_id)
    assert cached[0] == 0
    assert cached[1] > 0
    assert cached[2] == 0

"""Label scoring: AFDC's token trie against lm-evaluation-harness, and against a bare loop of the same reads.

    python -m benchmarks.score_speed --data DIR [--texts 64] [--harness-texts 8] [--repeats 2]

DIR holds test.jsonl and task.json. All sides use the same model, dtype, block size and batch limits:
1. AFDC: `Engine.score`, that is tokenising, trie, reads, assembling.
2. Bare loop: the same token ids, read one token each through the same AsyncLLM, nothing around it.
3. lm-evaluation-harness, `local-completions` with token requests, against `vllm serve` of the same build: every label
   is a request with its prompt log-probs. The labels are the very token sequences that AFDC scores.
1 and 2 alternate in one engine, with the prefix cache emptied before each part.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from afdc.engine_config import EngineConfig
from afdc.inputs import read_examples, read_task
from afdc.prompting import PromptCodec
from afdc.task import Task
from afdc_server.engine.backend import ReadAnswer
from afdc_server.engine.build import load_tokenizer, make_engine
from afdc_server.engine.environment import engine_environment, preloaded_libraries
from afdc_server.engine.settings import resolve_settings
from afdc_server.engine.trie import LabelTrie
from afdc_server.models import ModelRef, detect_device, resolve_model

START_TIMEOUT_S = 600


async def time_own(engine: Any, codec: PromptCodec, task: Task, texts: list[str], repeats: int) -> dict[str, Any]:
    """Texts a second of AFDC and of the bare loop, alternating; and AFDC's scores."""
    trie = LabelTrie.build(codec.scored_ids)
    backend = engine.supervisor.backend
    await engine.score(texts[:4], task)
    own, bare = [], []
    scores = None
    for _ in range(repeats):
        await backend.llm.reset_prefix_cache()
        started = time.perf_counter()
        scores = await engine.score(texts, task)
        own.append(len(texts) / (time.perf_counter() - started))
        await backend.llm.reset_prefix_cache()
        prompts = [codec.prompt_ids(text) for text in texts]
        started = time.perf_counter()
        await bare_reads(backend, prompts, trie)
        bare.append(len(texts) / (time.perf_counter() - started))
    assert scores is not None
    assert not scores.errors
    return {"own": own, "bare": bare, "logprobs": scores.logprobs, "reads": len(trie.reads)}


async def bare_reads(backend: Any, prompts: list[list[int]], trie: LabelTrie) -> list[ReadAnswer]:
    """Every read of every text, as many at once as AFDC allows itself."""
    gate = asyncio.Semaphore(2 * 128)

    async def one(prompt: list[int], read: Any) -> ReadAnswer:
        async with gate:
            answer: ReadAnswer = await backend.read([*prompt, *read.path], read.ids, None)
            return answer

    return await asyncio.gather(*(one(prompt, read) for prompt in prompts for read in trie.reads))


@contextmanager
def serve(model: ModelRef, config: EngineConfig) -> Iterator[str]:
    """`vllm serve` with the settings that AFDC's engine has, LoRA aside (it would only slow it down)."""
    settings = resolve_settings(config, 1 << 30)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # `vllm serve` itself looks for a package called vllm, which the CPU build is not: this is the module behind it
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model.path)]
    command += ["--port", str(port)]
    command += ["--host", "127.0.0.1", "--dtype", settings.dtype, "--max-model-len", str(settings.max_model_len)]
    command += ["--max-num-seqs", str(settings.max_num_seqs), "--max-logprobs", "20"]
    command += ["--max-num-batched-tokens", str(settings.max_num_batched_tokens)]
    command += ["--served-model-name", "bench", "--block-size", str(settings.block_size or 16)]
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as logs:
        with engine_environment(settings, Path(logs)):  # cores, KV cache: what AFDC's engine is given
            environment = {**os.environ, "LD_PRELOAD": ":".join(map(str, preloaded_libraries()))}
        environment.pop("VLLM_LOGGING_CONFIG_PATH")  # it logs to its own output
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            wait_until_up(server, f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}/v1/completions"
        finally:
            server.terminate()
            server.wait(60)


def wait_until_up(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1)
    raise SystemExit("vllm serve did not start")


def time_harness(url: str, model: ModelRef, codec: PromptCodec, texts: list[str], batch: int) -> tuple[float, Any]:
    """Texts a second of lm-evaluation-harness, and its log-probs [n, n_labels]."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    lm = LocalCompletionsAPI(
        model="bench",
        base_url=url,
        tokenizer=str(model.path),
        tokenizer_backend="huggingface",
        tokenized_requests=True,
        batch_size=batch,
        max_length=2047,
    )
    lm._loglikelihood_tokens(token_requests(codec, texts[:1]), disable_tqdm=True)
    started = time.perf_counter()
    answers = lm._loglikelihood_tokens(token_requests(codec, texts), disable_tqdm=True)
    seconds = time.perf_counter() - started
    return len(texts) / seconds, np.array([value for value, _ in answers]).reshape(len(texts), -1)


def token_requests(codec: PromptCodec, texts: list[str]) -> list[Any]:
    """One request a text and label: (key, context ids, continuation ids)."""
    return [
        ((text, str(index)), codec.prompt_ids(text), list(path))
        for text in texts
        for index, path in enumerate(codec.scored_ids)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--harness-texts", type=int, default=8)
    parser.add_argument("--harness-batch", type=int, default=16, help="requests a call of the harness")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", default="")
    args = parser.parse_args()
    task = read_task(args.data / "task.json")
    texts = [example.text for example in read_examples(args.data / "test.jsonl", task)[: args.texts]]
    config = EngineConfig(label_floor=0)  # like for like: the others read every label to its end
    model = resolve_model(args.model, detect_device("auto"))
    codec = PromptCodec(load_tokenizer(model.path), task)
    own = asyncio.run(measure_own(model, config, codec, task, texts, args.repeats))
    with serve(model, config) as url:
        harness, theirs = time_harness(url, model, codec, texts[: args.harness_texts], args.harness_batch)
    report(args.data.name, task, own, harness, theirs)


async def measure_own(
    model: ModelRef, config: EngineConfig, codec: PromptCodec, task: Task, texts: list[str], repeats: int
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as logs:
        engine: Any = make_engine(model, config, Path(logs))
        await engine.start()
        try:
            return await time_own(engine, codec, task, texts, repeats)
        finally:
            await engine.close()


def report(name: str, task: Task, own: dict[str, Any], harness: float, theirs: Any) -> None:
    mean_own, mean_bare = statistics.mean(own["own"]), statistics.mean(own["bare"])
    gap = float(np.abs(own["logprobs"][: len(theirs)] - theirs).max())
    print(
        json.dumps(
            {
                "data": name,
                "labels": len(task.labels),
                "reads_a_text": own["reads"],
                "afdc_texts_per_s": round(mean_own, 3),
                "bare_texts_per_s": round(mean_bare, 3),
                "harness_texts_per_s": round(harness, 4),
                "afdc_over_harness": round(mean_own / harness, 2),
                "afdc_over_bare": round(mean_own / mean_bare, 3),
                "largest_logprob_gap_to_harness": round(gap, 3),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()

"""Generation: tokens a second of `Engine.generate` against the bare engine on the same prompts and sampling.

    python -m benchmarks.generate_speed [--data DIR] [--requests 96] [--draws 6] [--repeats 3]

The prompts are those of an augment round (over DIR's train.jsonl, or the project's example seeds). The bare side hands
the same token ids and sampling settings to the same AsyncLLM, all at once, and waits. The two alternate, the prefix
cache emptied before each. Draws have seeds, so both sides write the same texts up to rounding.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afdc.config import AugmentConfig
from afdc.engine_config import EngineConfig
from afdc.inputs import read_examples, read_task
from afdc.prompting import encode_continuation
from afdc.seeds import check_seeds
from afdc.task import Example, Task
from afdc_pipeline.augment import plan_requests
from afdc_pipeline.rows import Seed
from afdc_pipeline.seams import GenerateRequest
from afdc_server.engine.build import load_tokenizer, make_engine
from afdc_server.models import detect_device, resolve_model

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "support_tickets"


def read_rows(data: Path, task: Task) -> tuple[Example, ...]:
    """Rows of train.jsonl, or of seeds.jsonl where there is no such file, without repeats."""
    path = data / "train.jsonl"
    return tuple(check_seeds(read_examples(path if path.exists() else data / "seeds.jsonl", task), task).examples)


def make_requests(data: Path, count: int, draws: int) -> list[GenerateRequest]:
    """The first `count` requests of an augment round."""
    task = read_task(data / "task.json")
    examples = read_rows(data, task)
    seeds = [Seed(e.id, e.text, e.label or "") for e in examples[: max(count, 64)]]
    plan = plan_requests(seeds, task, AugmentConfig(variants=draws), "bench", 1, 0, "continuation")
    return [planned.request for planned in plan][:count]


async def run_own(engine: Any, requests: Sequence[GenerateRequest]) -> int:
    """Completion tokens that AFDC's engine wrote."""
    return sum([sum(c.tokens for c in one.completions) async for one in engine.generate(requests)])


async def run_bare(llm: Any, tokenizer: Any, requests: Sequence[GenerateRequest]) -> int:
    """Completion tokens that the AsyncLLM wrote, asked directly and without log-probs."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    async def one(request: GenerateRequest) -> int:
        sampling = request.sampling
        params = SamplingParams(
            n=request.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            stop=list(sampling.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = {"prompt_token_ids": encode_continuation(tokenizer, str(request.prompt))}
        async for output in llm.generate(prompt, params, f"bare-{time.perf_counter_ns()}-{request.id}"):
            last = output
        return sum(len(completion.token_ids) for completion in last.outputs)

    return sum(await asyncio.gather(*(one(request) for request in requests)))


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    requests = make_requests(args.data, args.requests, args.draws)
    model = resolve_model(args.model, detect_device("auto"))
    tokenizer = load_tokenizer(model.path)
    own, bare = [], []
    with tempfile.TemporaryDirectory() as logs:
        engine: Any = make_engine(model, EngineConfig(), Path(logs))
        await engine.start()
        try:
            llm = engine.supervisor.backend.llm
            await run_own(engine, requests[:8])
            for _ in range(args.repeats):
                for side, work in ((own, run_own(engine, requests)), (bare, run_bare(llm, tokenizer, requests))):
                    await llm.reset_prefix_cache()
                    started = time.perf_counter()
                    tokens = await work
                    side.append(tokens / (time.perf_counter() - started))
        finally:
            await engine.close()
    return {
        "afdc_tokens_per_s": [round(x, 1) for x in own],
        "bare_tokens_per_s": [round(x, 1) for x in bare],
        "afdc_over_bare": round(statistics.mean(own) / statistics.mean(bare), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=EXAMPLE)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="")
    print(json.dumps(asyncio.run(measure(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()

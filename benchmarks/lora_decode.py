"""What LoRA costs vLLM's decode speed on the CPU, with this project's LoRA code and with vLLM's own.

    python benchmarks/lora_decode.py [--sequences 128] [--tokens 24] [--rounds 5]

Three engines, each in its own process: without LoRA, with LoRA and our code, with LoRA and vLLM's code. They are all up
at once and decode in short turns, so that whatever else the machine does hits all alike. The LoRA engines decode with
and without an adapter. Speed is decode alone: time for N tokens less the time for one. A ratio is the median of the
ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afdc_server.engine.environment import preloaded_libraries
from afdc_server.models import resolve_model

ENGINES = {"none": "no LoRA", "ours": "LoRA, our code", "stock": "LoRA, vLLM's code"}
RANK = 16
PROMPT = 8  # tokens: vLLM's own code takes minutes to read longer ones with an adapter


def write_adapter(model: Path, target: Path) -> None:
    """A rank-16 adapter with random weights on every linear layer of a Llama-shaped model."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((model / "config.json").read_bytes())
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    keys = hidden // heads * config["num_key_value_heads"]
    shapes = {f"self_attn.{name}_proj": (hidden, keys if name in "kv" else hidden) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (hidden, inner), "mlp.up_proj": (hidden, inner), "mlp.down_proj": (inner, hidden)}
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module, (inputs, outputs) in shapes.items():
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(RANK, inputs, generator=generator) / inputs**0.5
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(outputs, RANK, generator=generator) * 0.01
    target.mkdir()
    save_file(tensors, target / "adapter_model.safetensors")
    targets = [module.split(".")[1] for module in shapes]
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "target_modules": targets, "bias": "none"}
    (target / "adapter_config.json").write_text(json.dumps(settings))


@dataclass(frozen=True)
class Row:
    """One line of the table: which engine decodes which kind of rows."""

    engine: str
    kind: str


ROWS = [Row("none", "base"), *(Row(engine, kind) for engine in ("ours", "stock") for kind in ("base", "adapter"))]


def serve(engine: str, model: Path, adapter: Path, sequences: int) -> None:
    """Child process: for each line "KIND TOKENS" on stdin decode, and answer with the seconds on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes to the log
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    lora = {"enable_lora": True, "max_loras": 2, "max_lora_rank": RANK} if engine != "none" else {}
    llm = LLM(
        str(model), dtype="bfloat16", max_model_len=512, max_num_seqs=sequences, max_num_batched_tokens=4096,
        block_size=32, enable_prefix_caching=False, disable_log_stats=True, seed=0, **lora,
    )  # fmt: skip
    requests = {"base": None, "adapter": LoRARequest("bench", 1, str(adapter))}
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        kind, tokens = line.split()
        print(decode_seconds(llm, sequences, int(tokens), requests[kind]), file=answers, flush=True)


def decode_seconds(llm: Any, sequences: int, tokens: int, request: Any) -> float:
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": [1000 + (7 * row + column) % 20_000 for column in range(PROMPT)]}
               for row in range(sequences)]  # fmt: skip
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=1.0, top_p=0.95, detokenize=False)
    start = time.perf_counter()
    llm.generate(prompts, sampling, lora_request=request, use_tqdm=False)
    return time.perf_counter() - start


@contextmanager
def started(engine: str, model: Path, adapter: Path, sequences: int) -> Iterator[subprocess.Popen[str]]:
    environment = {
        **os.environ,
        "AFDC_CPU_LORA": "0" if engine == "stock" else "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
        "LD_PRELOAD": ":".join(preloaded_libraries()),
    }
    command = [sys.executable, __file__, "--sequences", str(sequences), "--serve", engine, str(model), str(adapter)]
    log = adapter.with_name(f"{engine}.log")
    with log.open("w") as stream:
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True
        )
        try:
            if child.stdout is None or child.stdout.readline().strip() != "ready":
                raise SystemExit(f"{ENGINES[engine]} did not start:\n{log.read_text()[-4000:]}")
            yield child
        finally:
            if child.stdin is not None:
                child.stdin.close()
            child.wait()


def ask(child: subprocess.Popen[str], kind: str, tokens: int) -> float:
    assert child.stdin is not None
    assert child.stdout is not None
    print(kind, tokens, file=child.stdin, flush=True)
    return float(child.stdout.readline())


def one_round(children: dict[str, subprocess.Popen[str]], args: argparse.Namespace) -> dict[Row, float]:
    """Decode speed of every row, tokens/s."""
    speeds = {}
    for row in ROWS:
        if child := children.get(row.engine):
            seconds = ask(child, row.kind, args.tokens) - ask(child, row.kind, 1)
            speeds[row] = args.sequences * (args.tokens - 1) / seconds
    return speeds


def report(rounds: list[dict[Row, float]], args: argparse.Namespace) -> None:
    reference = next(iter(rounds[0]))
    print(f"decode, {args.sequences} sequences, {args.tokens} tokens, rank {RANK}, {len(rounds)} rounds")
    print(f"{'engine':<20} {'rows':<8} {'tokens/s':>9} {'ratio':>6}   lowest-highest ratio")
    for row in rounds[0]:
        ratios = [speeds[row] / speeds[reference] for speeds in rounds]
        speed = statistics.median(speeds[row] for speeds in rounds)
        print(f"{ENGINES[row.engine]:<20} {row.kind:<8} {speed:>9.0f} {statistics.median(ratios):>6.2f}   "
              f"{min(ratios):.2f}-{max(ratios):.2f}")  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.serve:
        engine, model, adapter = args.serve
        serve(engine, Path(model), Path(adapter), args.sequences)
        return
    model = resolve_model("", "cpu").path
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        adapter = Path(name) / "adapter"
        write_adapter(model, adapter)
        children = {
            engine: stack.enter_context(started(engine, model, adapter, args.sequences)) for engine in args.engines
        }
        for row in ROWS:
            if row.engine in children:
                ask(children[row.engine], row.kind, 2)  # loads the adapter, warms up
        report([one_round(children, args) for _ in range(args.rounds)], args)


if __name__ == "__main__":
    main()

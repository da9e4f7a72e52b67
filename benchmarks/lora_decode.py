"""What LoRA costs vLLM's decode speed on the CPU, with this project's LoRA code and with vLLM's own.

    python benchmarks/lora_decode.py [--sequences 128] [--tokens 48] [--repeats 2]

Three engines, each in its own process, take turns: without LoRA, with LoRA and our code, with LoRA and vLLM's code. The
LoRA engines decode with and without an adapter. Speed is decode alone: time for N tokens less the time for one.
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
from pathlib import Path
from typing import Any

from afdc_server.engine.environment import preloaded_libraries
from afdc_server.models import resolve_model

ENGINES = {"none": "no LoRA", "ours": "LoRA, our code", "stock": "LoRA, vLLM's code"}
REFERENCE = ("none", "base")
RANK = 16


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


def measure(engine: str, model: Path, adapter: Path, sequences: int, tokens: int) -> dict[str, list[float]]:
    """Decode speed, tokens/s, of each kind of row in one engine. Runs in a process of its own."""
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    lora = {"enable_lora": True, "max_loras": 2, "max_lora_rank": RANK} if engine != "none" else {}
    llm = LLM(
        str(model), dtype="bfloat16", max_model_len=512, max_num_seqs=sequences, max_num_batched_tokens=4096,
        block_size=32, enable_prefix_caching=False, disable_log_stats=True, seed=0, **lora,
    )  # fmt: skip
    rows = {"base": None} if engine == "none" else {"base": None, "adapter": LoRARequest("bench", 1, str(adapter))}
    for request in rows.values():
        decode_seconds(llm, sequences, 4, request)
    speeds: dict[str, list[float]] = {kind: [] for kind in rows}
    for _ in range(2):
        for kind, request in rows.items():
            seconds = decode_seconds(llm, sequences, tokens, request) - decode_seconds(llm, sequences, 1, request)
            speeds[kind].append(sequences * (tokens - 1) / seconds)
    return speeds


def decode_seconds(llm: Any, sequences: int, tokens: int, request: Any) -> float:
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": [1000 + (7 * row + column) % 20_000 for column in range(32)]}
               for row in range(sequences)]  # fmt: skip
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=1.0, top_p=0.95, detokenize=False)
    start = time.perf_counter()
    llm.generate(prompts, sampling, lora_request=request, use_tqdm=False)
    return time.perf_counter() - start


def run_engine(
    engine: str, model: Path, adapter: Path, args: argparse.Namespace, folder: Path
) -> dict[str, list[float]]:
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    environment = {
        **os.environ,
        "AFDC_CPU_LORA": "0" if engine == "stock" else "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "LD_PRELOAD": ":".join(preloaded_libraries()),
    }
    answer = folder / "answer.json"
    size = ["--sequences", str(args.sequences), "--tokens", str(args.tokens)]
    inner = ["--inner", engine, str(model), str(adapter), str(answer)]
    with (folder / "engine.log").open("w") as log:
        done = subprocess.run(
            [sys.executable, __file__, *size, *inner], env=environment, stdout=log, stderr=log, check=False
        )
    if done.returncode:
        raise SystemExit(f"{ENGINES[engine]} failed:\n" + (folder / "engine.log").read_text()[-4000:])
    return dict(json.loads(answer.read_bytes()))


def report(speeds: dict[tuple[str, str], list[float]], args: argparse.Namespace) -> None:
    reference = statistics.median(speeds[REFERENCE])
    print(f"decode, {args.sequences} sequences, {args.tokens} tokens, rank {RANK}, median of {len(speeds[REFERENCE])}")
    print(f"{'engine':<20} {'rows':<8} {'tokens/s':>9} {'ratio':>6}   lowest-highest")
    for (engine, kind), values in speeds.items():
        middle = statistics.median(values)
        spread = f"{min(values):.0f}-{max(values):.0f}"
        print(f"{ENGINES[engine]:<20} {kind:<8} {middle:>9.0f} {middle / reference:>6.2f}   {spread}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=2, help="starts of each engine")
    parser.add_argument("--inner", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.inner:
        engine, model, adapter, answer = args.inner
        speeds = measure(engine, Path(model), Path(adapter), args.sequences, args.tokens)
        Path(answer).write_text(json.dumps(speeds))
        return
    model = resolve_model("", "cpu").path
    found: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_adapter(model, folder / "adapter")
        for _ in range(args.repeats):
            for engine in ENGINES:
                for kind, values in run_engine(engine, model, folder / "adapter", args, folder).items():
                    found.setdefault((engine, kind), []).extend(values)
    report(found, args)


if __name__ == "__main__":
    main()

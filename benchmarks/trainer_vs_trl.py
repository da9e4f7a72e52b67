"""Training speed: our trainer beside TRL's SFTTrainer, alternating, in fresh processes with the same surroundings.

    python benchmarks/trainer_vs_trl.py --data DIR [--model M] [--dtype bfloat16] [--steps 20] [--repeats 2]

DIR holds task.json and train.jsonl. Both see the same rows, LoRA configuration, precision, batch size, thread settings
and preloaded libraries; the first WARM steps of each are not timed. Tokens/s counts every prompt in full for both, as
if nothing were shared or packed. The matmul ceiling is torch.matmul over the layer shapes in that precision;
training with frozen base weights needs 4 FLOP a parameter and token (2 forward, 2 backward).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from afdc.config import TrainConfig
from afdc.prompting import PromptCodec, system_prompt
from afdc.task import Task
from afdc.training import TrainJob, TrainRow

WARM = 3
RANK, ALPHA, RATE = 16, 32, 1e-3


def make_job(args: argparse.Namespace, folder: Path) -> TrainJob:
    """A job of exactly WARM + steps batches."""
    from afdc_server.models import resolve_model
    from afdc_trainer.model import load_tokenizer

    task = Task.model_validate_json((args.data / "task.json").read_text(encoding="utf-8"))
    model = resolve_model(args.model, "cpu").path
    with (args.data / "train.jsonl").open(encoding="utf-8") as stream:
        examples = [json.loads(line) for line, _ in zip(stream, range((WARM + args.steps) * args.batch), strict=False)]
    folder.mkdir(parents=True)
    rows = [TrainRow(text=e["text"], targets={task.names.index(e["label"]): 1.0}) for e in examples]
    (folder / "rows.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in rows), encoding="utf-8")
    config = TrainConfig(
        contrastive=0,  # TRL has no such loss
        rank=RANK,
        alpha=ALPHA,
        learning_rate=RATE,
        batch_size=args.batch,
        dtype=args.dtype,
        device="cpu",
    )
    return TrainJob(
        name="bench-r0",
        job="bench",
        round=0,
        model=model,
        model_revision="bench",
        task=task,
        template_hash=PromptCodec(load_tokenizer(model), task).template_hash,
        rows=folder / "rows.jsonl",
        epochs=1,
        seed=0,
        config=config,
        probes=(),
        max_tokens=2048,
        work=folder / "work",
        adapters=folder / "adapters",
        result=folder / "result.json",
    )


def run_ours(job: TrainJob) -> dict[str, Any]:
    """The product's own loop, progress lines and checkpoints included."""
    from afdc_trainer import data, run
    from afdc_trainer.loop import Fit
    from afdc_trainer.ranks import Ranks

    run.make_deterministic()
    codec, rows = run.build_codec(job), data.read_rows(job)
    examples = [data.encode_row(codec, row, job.max_tokens) for row in rows]
    model, weights = run.build_model(job, Ranks())
    steps = data.schedule(rows, job)
    Fit(job, model, weights, codec.prefix_ids, examples, steps[:WARM], Ranks()).run()
    started = time.perf_counter()
    trace, _ = Fit(job, model, weights, codec.prefix_ids, examples, steps[WARM:], Ranks()).run()
    return {"seconds": time.perf_counter() - started, "model_tokens": trace.tokens, "loss": trace.losses[-1]}


def run_trl(job: TrainJob) -> dict[str, Any]:
    """SFTTrainer on prompt-completion rows, completion-only loss, no gradient checkpointing (faster without)."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    clock, config = Clock(), job.config
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, config.dtype))
    settings = {"per_device_train_batch_size": config.batch_size, "num_train_epochs": 1, "learning_rate": RATE}
    quiet = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    device = {"use_cpu": True, "bf16": False, "dataloader_pin_memory": False, "gradient_checkpointing": False}
    arguments = SFTConfig(
        output_dir=str(job.work), completion_only_loss=True, max_length=None, **settings, **quiet, **device
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([_conversation(job, line) for line in job.rows.open(encoding="utf-8")]),
        processing_class=AutoTokenizer.from_pretrained(job.model),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, task_type="CAUSAL_LM", target_modules=_targets(job)),
        callbacks=[clock],
    )
    loss = trainer.train().training_loss
    return {"seconds": clock.times[-1] - clock.times[WARM - 1], "loss": loss, "steps": len(list(pairwise(clock.times)))}


def _conversation(job: TrainJob, line: str) -> dict[str, Any]:
    row = TrainRow.model_validate_json(line)
    prompt = [{"role": "system", "content": system_prompt(job.task)}, {"role": "user", "content": row.text}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": job.task.names[next(iter(row.targets))]}]}


def _targets(job: TrainJob) -> list[str]:
    from transformers import AutoConfig, AutoModelForCausalLM

    from afdc_trainer.lora import block_linears

    names = block_linears(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(job.model)))
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def run_ceiling(job: TrainJob) -> dict[str, Any]:
    """FLOP/s of plain products over the shapes of the blocks' linear layers, forward and input gradient."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from afdc_trainer.lora import block_linears

    dtype = getattr(torch, job.config.dtype)
    layers = block_linears(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(job.model))).values()
    parameters = sum(layer.weight.numel() for layer in layers)
    flops = seconds = 0.0
    for out, into in sorted({(layer.out_features, layer.in_features) for layer in layers}):
        w, x, g = (torch.randn(shape).to(dtype) for shape in ((out, into), (512, into), (512, out)))
        for _ in range(5):
            x @ w.t(), g @ w
        started = time.perf_counter()
        for _ in range(100):
            x @ w.t(), g @ w
        seconds += time.perf_counter() - started
        flops += 100 * 4 * 512 * out * into
    return {"flops": flops / seconds, "parameters": parameters}


WORKERS = {"ours": run_ours, "trl": run_trl, "ceiling": run_ceiling}


def run_worker(name: str, job: TrainJob, folder: Path) -> dict[str, Any]:
    """One measurement in a fresh process."""
    from afdc_server.child import trainer_environment

    folder.mkdir(parents=True)
    places = {"work": folder / "work", "result": folder / "result.json"}
    (folder / "job.json").write_text(job.model_copy(update=places).model_dump_json(), encoding="utf-8")
    command = [sys.executable, __file__, "--worker", name, "--job", str(folder / "job.json")]
    done = subprocess.run(command, env=trainer_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {name}: {measured}", file=sys.stderr)
    return measured


def count_tokens(job: TrainJob) -> int:
    """Tokens of the timed rows with every prompt in full."""
    from afdc_trainer import data
    from afdc_trainer.run import build_codec

    codec, rows = build_codec(job), data.read_rows(job)
    steps = data.schedule(rows, job)[WARM:]
    sizes = [len(codec.prefix_ids) + data.encode_row(codec, row, job.max_tokens).tokens + 1 for row in rows]
    return sum(sizes[index] for step in steps for index in step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", default="")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--worker", choices=sorted(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        job = TrainJob.model_validate_json(args.job.read_bytes())
        print("\n" + json.dumps(WORKERS[args.worker](job)))
        return
    if args.data is None:
        parser.error("--data DIR is needed: a folder with task.json and train.jsonl")
    compare(args)


def compare(args: argparse.Namespace) -> None:
    """Alternate the two, then print medians and the ratio."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        job = make_job(args, root / "data")
        runs: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": [], "ceiling": []}
        for repeat in range(args.repeats):
            for name, done in runs.items():
                done.append(run_worker(name, job, root / f"{name}{repeat}"))
        tokens = count_tokens(job)
    rows = args.steps * args.batch
    seconds = {name: statistics.median(r["seconds"] for r in runs[name]) for name in ("ours", "trl")}
    ceiling, parameters = max(r["flops"] for r in runs["ceiling"]), runs["ceiling"][0]["parameters"]
    through = {"ours": runs["ours"][0]["model_tokens"], "trl": tokens}
    print(f"{args.dtype}, batch {args.batch}, {rows} rows of {args.data.name}, ceiling {ceiling / 1e9:.0f} GFLOP/s")
    for name, time_taken in seconds.items():
        share = through[name] * 4 * parameters / time_taken / ceiling
        print(
            f"{name:5} {rows / time_taken:7.2f} examples/s {tokens / time_taken:7.0f} prompt tokens/s "
            f"{through[name] / time_taken:7.0f} computed tokens/s = {share:.0%} of the matmul ceiling"
        )
    print(f"ratio {seconds['trl'] / seconds['ours']:.2f}x examples/s")


if __name__ == "__main__":
    main()

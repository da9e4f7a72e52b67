"""One round, from a TrainJob to a published adapter."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from safetensors.torch import load_file

from afdc.adapter import WEIGHTS_FILE, verify_adapter
from afdc.errors import ModelError
from afdc.prompting import PromptCodec
from afdc.training import TrainJob, TrainResult
from afdc_trainer import data, model, publish
from afdc_trainer.average import mean_state
from afdc_trainer.checkpoint import Trace, drop_checkpoints
from afdc_trainer.loop import Fit
from afdc_trainer.lora import LoraWeights
from afdc_trainer.ranks import Ranks, join

PROBE_BUDGET = 2048


def make_deterministic(cpu: bool) -> None:
    """The same job on the same machine gives the same bytes.

    Operations without a fixed order warn on a CPU and are errors on a GPU: with warnings alone, fused attention keeps
    its faster backward pass, whose sums have no fixed order.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=cpu)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads unwritten memory


def fit(job: TrainJob) -> TrainResult:
    """Train, or average what `job.average` names, and publish. In a process group all train, and the first publishes.

    Raises:
        AfdcError: says what is wrong with the job, the model, the memory or the numbers.
    """
    started = time.perf_counter()
    cpu = job.config.device == "cpu" or not torch.cuda.is_available()
    make_deterministic(cpu)
    ranks = join(cpu)
    codec = build_codec(job)
    inputs = data.identify(job)
    rows = data.read_rows(job)
    examples = [] if job.average else [data.encode_row(codec, row, job.max_tokens) for row in rows]
    language_model, weights = build_model(job, ranks)
    trace, resumed = Trace(), 0
    if examples:
        _check_window(language_model, codec, examples)
        steps = data.schedule(rows, job)
        trace, resumed = Fit(job, language_model, weights, codec.prefix_ids, examples, steps, ranks).run()
    folder = None
    if ranks.first:
        answers = {row.text: row.completion for row in rows if row.gold and row.completion is not None}
        probes = publish.read_probes(language_model.eval(), codec, job.probes, answers, PROBE_BUDGET)
        dtype = str(language_model.dtype).removeprefix("torch.")
        folder = publish.publish(job, weights, probes, dtype)
        drop_checkpoints(job.work)
    ranks.leave()
    return TrainResult(
        status="succeeded",
        adapter=folder,
        inputs=inputs,
        losses=tuple(trace.losses),
        steps=trace.step,
        rows=len(examples),
        tokens=trace.tokens,
        seconds=time.perf_counter() - started,
        resumed_at_step=resumed,
    )


def build_codec(job: TrainJob) -> PromptCodec:
    """The prompt codec, once it is sure that the engine's is the same.

    Raises:
        ModelError: this tokenizer and task give other prompts than the engine's.
    """
    codec = PromptCodec(model.load_tokenizer(job.model), job.task)
    if codec.template_hash != job.template_hash:
        raise ModelError(
            f"the trainer's template {codec.template_hash[:12]} is not the engine's, {job.template_hash[:12]}",
            remedy="Give both the same model folder and the same transformers version",
        )
    return codec


def build_model(job: TrainJob, ranks: Ranks) -> tuple[Any, LoraWeights]:
    """The frozen model with LoRA in place: fresh, `job.continue_from`, or the mean of `job.average`."""
    device = model.choose_device(job.config, ranks.local_rank)
    language_model = model.load_model(job.model, model.choose_dtype(job.config, device), device)
    weights = LoraWeights(language_model, job.config, device)
    weights.initialise(job.seed)
    if job.average:
        weights.load(mean_state(job, weights.state()))
    elif job.continue_from:
        verify_adapter(job.continue_from)
        weights.load(load_file(job.continue_from / WEIGHTS_FILE))
    return language_model, weights


def _check_window(language_model: Any, codec: PromptCodec, examples: list[data.Example]) -> None:
    longest = max(len(e.prompt) + max(len(b.ids) for b in e.branches) for e in examples) + len(codec.prefix_ids)
    limit = model.longest_path(language_model)
    if longest > limit:
        raise ModelError(
            f"the longest row has {longest} tokens and the model attends over {limit}", remedy="Shorten it"
        )

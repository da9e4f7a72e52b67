"""The finished adapter: probes, weights, configuration and manifest in one immutable folder."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from afdc.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterManifest, Probe, publish_adapter, write_manifest
from afdc.errors import TrainerError
from afdc.files import sha256_bytes, write_bytes
from afdc.prompting import PromptCodec
from afdc.training import TrainJob
from afdc_trainer.data import Branch, Example
from afdc_trainer.lora import LoraWeights
from afdc_trainer.model import predictions
from afdc_trainer.pack import build_pack, split_examples


def label_logprobs(model: Any, codec: PromptCodec, texts: Sequence[str], budget: int) -> list[tuple[float, ...]]:
    """log P of each label's scored ids after each text: natural log, full vocabulary, float32 softmax.

    `budget` bounds the tokens of one forward pass. Returns one tuple a text, in label order.
    """
    return path_logprobs(model, codec, [(text, codec.scored_ids) for text in texts], budget)


def read_probes(
    model: Any, codec: PromptCodec, texts: Sequence[str], answers: Mapping[str, str], budget: int
) -> tuple[Probe, ...]:
    """The log-probs that the swap compares; `answers` holds the answer of each text of an open task."""
    probes = [Probe(text=text, answer=answers.get(text), logprobs=()) for text in texts]
    scores = path_logprobs(model, codec, [(probe.text, probe.scored_ids(codec)) for probe in probes], budget)
    return tuple(probe.model_copy(update={"logprobs": row}) for probe, row in zip(probes, scores, strict=True))


def path_logprobs(
    model: Any, codec: PromptCodec, asked: Sequence[tuple[str, Sequence[tuple[int, ...]]]], budget: int
) -> list[tuple[float, ...]]:
    """log P of each path after its text, one tuple a text. A text has at least one path."""
    examples = [
        Example((*codec.text_ids(text), *codec.suffix_ids), tuple(Branch(ids, 0.0) for ids in paths))
        for text, paths in asked
    ]
    rows: list[tuple[float, ...]] = []
    for group in split_examples(len(codec.prefix_ids), examples, budget) if examples else []:
        pack = build_pack(codec.prefix_ids, group)
        with torch.no_grad():
            logprobs = predictions(model, pack).cpu()
        each = logprobs[torch.from_numpy(pack.at), torch.from_numpy(pack.targets)]
        counts = [len(example.branches) for example in group]
        sums = torch.zeros(sum(counts)).index_add_(0, torch.from_numpy(pack.branch), each)
        rows += [tuple(row.tolist()) for row in sums.split(counts)]  # type: ignore[no-untyped-call]  # torch has none
    return rows


def publish(job: TrainJob, weights: LoraWeights, probes: Sequence[Probe], probe_dtype: str) -> Path:
    """Write the adapter folder under a temporary name, check it as the engine will, and give it its name.

    A damaged folder under that name is set aside, not trusted and not deleted. A whole one stays, and has the job's
    manifest from then on.

    Raises:
        TrainerError: a weight is not finite.
        StorageError: the disk is full or cannot be written.
    """
    state = weights.state()
    broken = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise TrainerError(f"the weights of {broken[0]} are not finite", remedy="Lower train.learning_rate")
    data = save(state, metadata={"format": "pt"})
    config = json.dumps(adapter_config(job, weights.targets), indent=2, sort_keys=True).encode()
    name = f"{job.name}-{sha256_bytes(data)[:12]}"
    manifest = AdapterManifest(
        name=name,
        job=job.job,
        round=job.round,
        member=job.member,
        base_model=str(job.model),
        base_revision=job.model_revision,
        rank=job.config.rank,
        task=job.task,
        template_hash=job.template_hash,
        temperature=job.temperature,
        probes=tuple(probes),
        probe_dtype=probe_dtype,
        files={CONFIG_FILE: sha256_bytes(config), WEIGHTS_FILE: sha256_bytes(data)},
    )
    temporary = job.adapters / f".{job.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    write_bytes(temporary / WEIGHTS_FILE, data)
    write_bytes(temporary / CONFIG_FILE, config)
    write_manifest(temporary, manifest)
    folder = job.adapters / name
    aside = publish_adapter(temporary, folder)
    if aside is not None:
        print(f"warning: {folder} was damaged and lies in {aside} now; published again", file=sys.stderr)
    return folder


def adapter_config(job: TrainJob, targets: Sequence[str]) -> dict[str, Any]:
    """`adapter_config.json` as PEFT's LoraConfig reads it."""
    config = job.config
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(job.model),
        "revision": None,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "target_modules": list(targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
    }

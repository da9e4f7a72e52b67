"""The plain way to the same numbers: transformers and PEFT, one forward pass a label, nothing cached."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from afdc.adapter import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, AdapterManifest, Probe
from afdc.files import sha256_file
from afdc.prompting import PromptCodec
from afdc.task import Task
from afdc_server.models import ModelRef

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_base(model: ModelRef) -> Any:
    return AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32, local_files_only=True).eval()


@torch.inference_mode()
def teacher_forced(network: Any, codec: PromptCodec, texts: Sequence[str]) -> NDArray[np.float64]:
    """log P(label's token sequence | text), float64 [n_texts, n_labels]."""
    rows = []
    for text in texts:
        prompt = codec.prompt_ids(text)
        row = []
        for path in codec.scored_ids:
            ids = torch.tensor([[*prompt, *path]])
            logprobs = network(input_ids=ids).logits[0].double().log_softmax(-1)
            row.append(sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(path)))
        rows.append(row)
    return np.array(rows)


def save_adapter(
    folder: Path, network: Any, model: ModelRef, codec: PromptCodec, probes: Sequence[str], rank: int = 8, seed: int = 0
) -> Path:
    """Write an adapter folder with random weights, large enough to change every answer, and true probes."""
    torch.manual_seed(seed)
    tuned = get_peft_model(
        network, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, task_type="CAUSAL_LM")
    )
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    tuned.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    rows = teacher_forced(tuned, codec, probes)
    tuned.unload()
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, "target_modules": sorted(TARGETS)}))
    write_manifest(folder, model, codec, probes, rows, rank, f"tiny-r{rank}-s{seed}")
    return folder


def write_manifest(
    folder: Path,
    model: ModelRef,
    codec: PromptCodec,
    probes: Sequence[str],
    rows: NDArray[np.float64],
    rank: int,
    name: str,
) -> AdapterManifest:
    files = {file: sha256_file(folder / file) for file in (CONFIG_FILE, WEIGHTS_FILE)}
    manifest = AdapterManifest(
        name=f"{name}-{files[WEIGHTS_FILE][:12]}",
        job="tests",
        round=0,
        base_model=model.name,
        base_revision=model.revision,
        rank=rank,
        task=codec.task,
        template_hash=codec.template_hash,
        probes=tuple(Probe(text=text, logprobs=tuple(row)) for text, row in zip(probes, rows, strict=True)),
        probe_dtype="float32",
        files=files,
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json())
    return manifest


def sentiment_task() -> Task:
    """Labels of one and several tokens, one of them the beginning of another."""
    return Task(
        instruction="Say what the text is about.",
        labels=("card lost", "card", "cash withdrawal declined", "exchange rate"),
    )

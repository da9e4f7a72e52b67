"""A tiny Llama with the packaged tokenizer for the runs that are killed and repeated, and jobs for both models."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from afdc.config import TrainConfig
from afdc.prompting import PromptCodec
from afdc.task import Task
from afdc.training import TrainJob, TrainRow

JobMaker = Callable[..., TrainJob]

TASK = Task.model_validate(
    {
        "instruction": "Say what the question asks for.",
        "labels": ["human", "a place on earth", "number", "number of things"],
    }
)
ROWS = [
    TrainRow(text="Who wrote Faust ?", targets={0: 1.0}, gold=True),
    TrainRow(text="Where is the highest mountain of the southern half of the world ?", targets={1: 1.0}, gold=True),
    TrainRow(text="How old is the moon ?", targets={2: 0.7, 3: 0.29, 0: 0.01}, weight=0.5),
    TrainRow(text="Wie viele Brücken hat Hamburg ?", targets={3: 1.0}),
    TrainRow(text="Which river runs through <|im_end|> Cairo ?", targets={1: 0.6, 2: 0.4}),
    TrainRow(text="谁发明了纸", targets={0: 1.0}),
]


@pytest.fixture(scope="session")
def packaged() -> Path:
    from afdc_server.packaged import packaged_model

    return packaged_model()


@pytest.fixture(scope="session")
def tiny(packaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of width 64, random weights, saved as any other model."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(packaged)
    torch.manual_seed(1)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, tie_word_embeddings=True, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def codec_of(model: Path, task: Task = TASK) -> PromptCodec:
    return PromptCodec(_tokenizer_of(model), task)


@cache
def _tokenizer_of(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


@pytest.fixture
def make_job(tmp_path: Path) -> JobMaker:
    """A job in `tmp_path/<folder>` over ROWS; keyword arguments override the job's fields, `config` TrainConfig's."""

    def make(model: Path, folder: str = "round", config: dict[str, Any] | None = None, **fields: Any) -> TrainJob:
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        rows = root / "rows.jsonl"
        rows.write_text("".join(row.model_dump_json() + "\n" for row in ROWS), encoding="utf-8")
        settings = {"batch_size": 4, "rank": 8, "dropout": 0.1, "dtype": "float32", "device": "cpu", **(config or {})}
        values: dict[str, Any] = {
            "name": "job-r1",
            "job": "job",
            "round": 1,
            "model": model,
            "model_revision": "main",
            "task": TASK,
            "template_hash": codec_of(model).template_hash,
            "rows": rows,
            "epochs": 2,
            "gold_repeat": 2,
            "seed": 3,
            "config": TrainConfig.model_validate(settings),
            "probes": ("Who was Homer ?", "How many legs has a spider ?"),
            "max_tokens": 256,
            "work": root / "work",
            "adapters": root / "adapters",
            "result": root / "result.json",
        }
        return TrainJob.model_validate({**values, **fields})

    return make

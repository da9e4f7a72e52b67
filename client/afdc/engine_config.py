"""The settings of the engine: part of a job's, and the service's own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from afdc.tables import SettingsTable

Device = Literal["auto", "cpu", "cuda"]
EngineDType = Literal["auto", "bfloat16", "float16", "float32"]

MAX_SECONDS = 1e6


class EngineConfig(SettingsTable):
    """The vLLM engine. None or "auto" means: chosen for the device (docs/engine.md has the table)."""

    url: str = Field(
        default="",
        max_length=2000,
        description="a `vllm serve` elsewhere, http://host:8000 (docs/remote.md); empty: here",
    )
    served_model: str = Field(
        default="", max_length=1000, description="with url: name of the base model there, where it is another one"
    )
    patience_s: float = Field(
        default=600.0, gt=0, le=MAX_SECONDS, description="with url: seconds to wait for a server that is away"
    )
    device: Device = Field(default="auto", description="where the model runs; auto: a GPU where there is one")
    dtype: EngineDType = Field(default="auto", description="numbers of weights and activations")
    max_model_len: int = Field(default=2048, ge=128, le=1 << 22, description="longest prompt plus answer, tokens")
    max_num_seqs: int | None = Field(default=None, ge=1, le=1 << 16, description="sequences in one engine step")
    max_num_batched_tokens: int | None = Field(
        default=None, ge=128, le=1 << 24, description="tokens in one engine step"
    )
    gpu_memory_utilization: float = Field(
        default=0.45, gt=0, le=0.98, description="CUDA only: share of the GPU's memory that the engine takes"
    )
    tensor_parallel_size: int = Field(default=1, ge=1, le=64, description="GPUs that share one copy of the model")
    kv_cache_gib: float = Field(default=2.0, gt=0, le=1 << 16, description="CPU only: size of the KV cache, GiB")
    block_size: int | None = Field(default=None, ge=8, le=1024, description="tokens a KV block; CPU default 32")
    max_loras: int = Field(
        default=6, ge=2, le=256, description="adapters live at once: committee, the round's, the one draining"
    )
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256] = Field(
        default=16,
        description="largest adapter rank; a run sets it to train.rank, since buffers and CPU traffic grow with it",
    )
    sleep_mode: bool = Field(
        default=False, description="CUDA only: give the KV cache's memory to the trainer while it runs"
    )
    label_floor: float = Field(
        default=1e-4,
        ge=0,
        lt=1,
        description="with many labels: those that begin with less than this share of the probability are not read to "
        "their end and share what their beginning has; 0: every label to its end",
    )
    hang_timeout_s: float = Field(
        default=180.0, gt=0, le=MAX_SECONDS, description="seconds without one token while requests wait"
    )
    start_timeout_s: float = Field(
        default=1200.0,
        gt=0,
        le=MAX_SECONDS,
        description="seconds that an engine start may take, model load and warm-up included",
    )
    max_restarts: int = Field(
        default=8, ge=0, le=1000, description="engine restarts without a single answer in between before the run fails"
    )
    max_in_flight: int | None = Field(
        default=None, ge=1, le=1 << 20, description="requests submitted at once; None = 2 x max_num_seqs"
    )

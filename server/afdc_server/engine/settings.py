"""What "auto" means on each device: the table in docs/engine.md, as code."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from afdc.engine_config import EngineConfig
from afdc.precision import Capability, engine_dtype
from afdc_server import cpu
from afdc_server.gpu import compute_capability
from afdc_server.models import detect_device

CPU_BLOCK = 32  # tokens; the CPU default of 128 recomputes up to 127 prompt tokens at every further trie node


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """EngineConfig with nothing left open. Sizes in tokens unless the name says otherwise."""

    device: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int | None
    max_in_flight: int
    config: EngineConfig

    @property
    def is_cpu(self) -> bool:
        return self.device == "cpu"

    @property
    def lends_device(self) -> bool:
        """Whether the trainer gets the KV cache's memory while it runs."""
        return not self.is_cpu and self.config.sleep_mode

    def probe_tolerance(self, trainer_dtype: str) -> float:
        """Largest difference in label probability, trainer against engine, that an adapter may show after the swap.

        It is tight only where both computed in float32: 16 bits on either side move probabilities by several points.
        """
        return 1e-3 if self.dtype == trainer_dtype == "float32" else 0.15


def resolve_settings(
    config: EngineConfig, model_limit: int, device: str | None = None, capability: Capability | None = None
) -> EngineSettings:
    """Fill in what depends on the device.

    Args:
        config: what the user asked for.
        model_limit: longest sequence that the model itself knows, tokens.
        device: "cpu" or "cuda"; None asks the machine.
        capability: the GPU's compute capability; None asks the machine where it matters.
    """
    device = device or detect_device(config.device)
    length = min(config.max_model_len, model_limit)
    seqs = config.max_num_seqs or (default_cpu_seqs() if device == "cpu" else 1024)
    batch = config.max_num_batched_tokens or (4096 if device == "cpu" else 16384)
    return EngineSettings(
        device=device,
        dtype=_auto_dtype(device, capability) if config.dtype == "auto" else config.dtype,
        max_model_len=length,
        max_num_seqs=seqs,
        max_num_batched_tokens=max(batch, length, seqs),
        block_size=config.block_size or (CPU_BLOCK if device == "cpu" else None),
        max_in_flight=config.max_in_flight or 2 * seqs,
        config=config,
    )


def _auto_dtype(device: str, capability: Capability | None) -> str:
    if device == "cpu":
        return "bfloat16" if cpu.has_bfloat16() else "float32"
    return engine_dtype(capability or compute_capability())


def default_cpu_seqs() -> int:
    """128 sequences suit two cores; more cores carry more."""
    return min(512, 64 * max(2, len(os.sched_getaffinity(0))))


def engine_arguments(settings: EngineSettings, model_path: str) -> dict[str, Any]:
    """Keyword arguments of vLLM's AsyncEngineArgs. Every name exists in vLLM 0.26 to 0.33."""
    config = settings.config
    arguments: dict[str, Any] = {
        "model": model_path,
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "enable_prefix_caching": True,
        "enable_lora": True,
        "max_loras": config.max_loras,
        "max_lora_rank": config.max_lora_rank,
        "tensor_parallel_size": config.tensor_parallel_size,
        "disable_log_stats": True,
        "seed": 0,
    }
    if settings.block_size is not None:
        arguments["block_size"] = settings.block_size
    if settings.is_cpu:
        # A chunked prefill of a request with its own seed kills the CPU engine: whole prompts only.
        arguments["enable_chunked_prefill"] = False
    else:
        arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
        arguments["enable_sleep_mode"] = config.sleep_mode
        # 16-bit logits round log-probs to 1/16 nat; a float32 head does not, and costs nothing measurable here.
        arguments["hf_overrides"] = {"head_dtype": "float32"}
    return arguments

"""How fast machines are, for a plan.

- CPU rates: measured with SmolLM2-135M-Instruct in bf16 on two cores; taken to fall in proportion to the parameters.
- GPU rates: one H100. Prefill: half of the 49,000 tokens/s that an 8B model could reach at 792 TFLOP/s. Decode: half of
  what reading 16 GB of weights a step at 3.35 TB/s allows 128 sequences. Training: NeMo's published 12,500 tokens/s for
  LoRA on Llama 3 8B. Below FLAT_BELOW parameters a GPU is taken not to get faster: fixed costs rule there.
- Encoder: all-MiniLM-L6-v2 on two cores in bfloat16, 2.2 times the 90 texts a second tuned on and 2.8 times the 150
  read that were measured in float32; a GPU's are guesses.
- Starts: 40 s for the CPU engine, measured. 90 s for a GPU engine and 15 s for a trainer process are assumptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FLAT_BELOW = 1.5e9  # parameters


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens a second of one machine, texts a second of its encoder, and seconds to start a process."""

    decode: float
    prefill: float
    train: float
    engine_start_s: float
    trainer_start_s: float
    block_size: int
    tune: float
    read: float


CPU_135M = Rates(
    decode=320, prefill=1000, train=300, engine_start_s=40, trainer_start_s=15, block_size=32, tune=200, read=420
)
H100_8B = Rates(
    decode=13_000,
    prefill=24_500,
    train=12_500,
    engine_start_s=90,
    trainer_start_s=15,
    block_size=16,
    tune=2000,
    read=5000,
)


def rates_for(device: Literal["cpu", "cuda"], parameters: float) -> Rates:
    """The table's rates, scaled to a model of this size."""
    anchor, size = (CPU_135M, 135e6) if device == "cpu" else (H100_8B, 8e9)
    faster = size / max(parameters, 1e6 if device == "cpu" else FLAT_BELOW)
    return Rates(
        decode=anchor.decode * faster,
        prefill=anchor.prefill * faster,
        train=anchor.train * faster,
        engine_start_s=anchor.engine_start_s,
        trainer_start_s=anchor.trainer_start_s,
        block_size=anchor.block_size,
        tune=anchor.tune,
        read=anchor.read,
    )

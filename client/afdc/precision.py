"""Which numbers a GPU computes in when `dtype` is "auto".

bfloat16 needs compute capability 8.0 (Ampere). Older GPUs emulate it slowly where they do it at all. There the engine
takes float16 and the trainer float32: float16 gradients overflow without loss scaling.
"""

from __future__ import annotations

from typing import Literal

Capability = tuple[int, int]

BFLOAT16_CAPABILITY: Capability = (8, 0)


def has_bfloat16(capability: Capability | None) -> bool:
    """Whether a GPU multiplies bfloat16; one that is not known (None) is taken for a new one."""
    return capability is None or capability >= BFLOAT16_CAPABILITY


def engine_dtype(capability: Capability | None) -> Literal["bfloat16", "float16"]:
    """What "auto" is for the engine on a GPU."""
    return "bfloat16" if has_bfloat16(capability) else "float16"


def trainer_dtype(capability: Capability | None) -> Literal["bfloat16", "float32"]:
    """What "auto" is for the trainer on a GPU."""
    return "bfloat16" if has_bfloat16(capability) else "float32"


def plan_precision(engine: str, trainer: str, capability: Capability | None) -> str:
    """What a run on a GPU computes in, for its plan.

    Args:
        engine, trainer: the configured dtypes, "auto" among them.
    """
    engine = engine_dtype(capability) if engine == "auto" else engine
    trainer = trainer_dtype(capability) if trainer == "auto" else trainer
    why = "" if has_bfloat16(capability) else ", for this GPU has no bfloat16"
    return f"{engine} in the engine, {trainer} in the trainer{why}"


def describe_precision(capability: Capability | None) -> str:
    """One phrase for people: the capability and what "auto" makes of it."""
    if capability is None:
        return "compute capability unknown: bfloat16"
    name = f"compute capability {capability[0]}.{capability[1]}"
    if has_bfloat16(capability):
        return f"{name}: bfloat16"
    engine, trainer = engine_dtype(capability), trainer_dtype(capability)
    return f"{name}: {engine} in the engine and {trainer} in the trainer (bfloat16 needs 8.0)"

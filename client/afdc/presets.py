"""From a preset and overrides to the settings of a job, and which settings make two jobs the same.

A preset names a full set of values; a file (`afdc.toml`, YAML) and flags then override single ones.
"""

from __future__ import annotations

from typing import Any

from afdc.config import AnswerConfig, RunConfig
from afdc.files import canonical_json, sha256_bytes

TOLERANT_ENGINE_KEYS = (
    "url",
    "served_model",
    "patience_s",
    "hang_timeout_s",
    "start_timeout_s",
    "max_restarts",
    "max_in_flight",
    "max_num_seqs",
    "max_num_batched_tokens",
    "gpu_memory_utilization",
    "kv_cache_gib",
)
"""Settings of memory and patience: a run may be resumed with others when the first ones did not fit the machine."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "select": {
            "strategy": "confidence",
            "threshold": 0.9,
            "agreement": False,
            "balance": False,
            "align": False,
            "trust": False,
            "out_of_sample": False,
            "unanimous": False,
            "soft_targets": False,
        },
        "loop": {"members": 0, "ensemble": False, "average": False, "rounds": 3, "folds": 0, "min_flip_rate": 0.0},
        "encoder": {"labeller": False},
        "train": {"seed_repeat": 1, "seed_epochs": 10, "contrastive": 0.0},
        "augment": {"variants": 18, "temperature": 1.0},
    },
}


def build_config(preset: str = "default", *overrides: dict[str, Any]) -> RunConfig:
    """Merge a preset with nested overrides, the last one winning.

    Raises:
        pydantic.ValidationError: an unknown key or a value out of range.
    """
    merged: dict[str, Any] = {"preset": preset}
    for layer in (PRESETS.get(preset, {}), *overrides):
        merged = merge_nested(merged, layer)
    return RunConfig.model_validate(merged)


def identifying_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that change the result. How many tries or seconds the engine gets does not.

    Answers that are sampled as by default are left out: tasks with labels have the identity that they always had.
    """
    data = config.model_dump(mode="json")
    for key in TOLERANT_ENGINE_KEYS:
        data["engine"].pop(key)
    if config.answer == AnswerConfig():
        data.pop("answer")
    return data


def config_hash(config: RunConfig) -> str:
    """Hash of `identifying_settings`."""
    return sha256_bytes(canonical_json(identifying_settings(config)))


def merge_nested(base: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `layer` in their places; neither is changed."""
    merged = dict(base)
    for key, value in layer.items():
        old = merged.get(key)
        merged[key] = merge_nested(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged

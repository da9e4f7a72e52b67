"""What the default preset has switched on, and each of these switched off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from afdc.errors import UsageError
from afdc.presets import build_config
from afdc.settings import merge_layers, set_layer

SECTIONS = ("augment", "select", "train", "encoder", "loop")
OFF: dict[str, Any] = {
    "encoder.name_repeat": 0,
    "loop.members": 1,
    "loop.min_flip_rate": 0.0,
    "loop.holdout": 0.0,
    "loop.folds": 0,
    "augment.rounds": 1,
    "augment.context_seeds": 1,
    "augment.min_mean_logprob": None,
    "select.threshold": 0.0,
    "select.per_label": None,
    "select.per_seed": None,
    "train.seed_repeat": 1,
    "train.contrastive": 0.0,
    "train.label_smoothing": 0.0,
    "train.dropout": 0.0,
}
"""The neutral value of switches that are numbers."""


def default_switches() -> dict[str, dict[str, Any]]:
    """Name -> override that turns one switch of the default preset off.

    Every true-or-false setting that is on, and every setting of OFF whose value is another one: the list follows the
    preset. Settings of OFF that this version does not have are left out.
    """
    config = build_config().model_dump(mode="json")
    return {path: nested(path, off) for path, off in _offs(config)}


def _offs(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section in SECTIONS:
        for name, value in config[section].items():
            path = f"{section}.{name}"
            if value is True:
                yield path, False
            elif path in OFF and value != OFF[path]:
                yield path, OFF[path]


def nested(path: str, value: Any) -> dict[str, Any]:
    """`a.b` and a value as {"a": {"b": value}}."""
    for name in reversed(path.split(".")):
        value = {name: value}
    result: dict[str, Any] = value
    return result


def parse_overrides(text: str) -> dict[str, Any]:
    """`section.key=value[,section.key=value...]` as nested settings, checked against the configuration.

    Raises:
        UsageError: an assignment that cannot be read, or an unknown key.
    """
    layer = set_layer(text.split(","))
    merge_layers([layer])  # checks it
    return dict(layer.values)


def parse_variant(text: str) -> tuple[str, dict[str, Any]]:
    """`name:section.key=value,...` as a name and nested settings.

    Raises:
        UsageError: there is no name, or the settings cannot be read.
    """
    name, found, settings = text.partition(":")
    if not (found and name):
        raise UsageError(f"{text!r} is not name:section.key=value")
    return name, parse_overrides(settings)

"""Several adapters on one base model in this process; one is active at a time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from afdc.adapter import CONFIG_FILE, WEIGHTS_FILE
from afdc.config import TrainConfig
from afdc_trainer.lora import LoraWeights, block_linears

Shape = tuple[int, int, bool]


@dataclass(frozen=True)
class _Layers:
    weights: LoraWeights
    modules: dict[str, nn.Module]


class LoraSwitch:
    """Puts an adapter's layers, or the model's own, in place. Adapters are of the trainer's kind."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._plain: dict[str, nn.Linear] = block_linears(model)
        self._layers: dict[Shape, _Layers] = {}
        self._adapters: dict[str, tuple[Shape, dict[str, Tensor]]] = {}
        self._active: str | None = None

    def add(self, name: str, folder: Path) -> None:
        """Read an adapter folder that was verified before."""
        config = json.loads((folder / CONFIG_FILE).read_bytes())
        shape = (int(config["r"]), int(config["lora_alpha"]), bool(config["use_rslora"]))
        self._adapters[name] = (shape, load_file(folder / WEIGHTS_FILE))

    def remove(self, name: str) -> None:
        """Forget an adapter; unknown names are ignored."""
        if self._active == name:
            self.activate(None)
        self._adapters.pop(name, None)

    def activate(self, name: str | None) -> None:
        """Make the model compute with adapter `name`; None is the base model."""
        if name == self._active:
            return
        modules: dict[str, Any] = dict(self._plain)
        if name is not None:
            shape, state = self._adapters[name]
            layers = self._layers_of(shape)
            layers.weights.load(state)
            modules = layers.modules
        self._put(modules)
        self._active = name

    def _layers_of(self, shape: Shape) -> _Layers:
        if shape not in self._layers:
            self._put(dict(self._plain))
            rank, alpha, rslora = shape
            config = TrainConfig.model_validate({"rank": rank, "alpha": alpha, "rslora": rslora})
            weights = LoraWeights(self.model, config, self.model.device)
            modules = {name: self.model.get_submodule(name) for name in self._plain}
            self._layers[shape] = _Layers(weights, modules)
        return self._layers[shape]

    def _put(self, modules: dict[str, Any]) -> None:
        for name, module in modules.items():
            parent, _, last = name.rpartition(".")
            setattr(self.model.get_submodule(parent), last, module)

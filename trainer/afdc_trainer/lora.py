"""LoRA on the linear layers of the transformer blocks (Hu et al. 2021, rank-stabilised: Kalajdzievski 2023).

The arithmetic and the tensor names are PEFT's, so PEFT and vLLM load what is trained here. The layer itself is our own
for speed: the base weights are frozen, so its backward pass needs four small products and no elementwise temporaries.
All LoRA matrices are float32 views of one flat vector, and their gradients of another: clipping, AdamW, checkpoints and
the sum over processes are each a single operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from afdc.config import TrainConfig
from afdc.errors import AdapterError, ModelError

PEFT_PREFIX = "base_model.model."


def update_scale(alpha: float, rank: int, *, rslora: bool) -> float:
    """What B A is multiplied by."""
    return alpha / (math.sqrt(rank) if rslora else rank)


class _LowRankLinear(torch.autograd.Function):
    """y = x W' + bias + scale * (x A') B'. W and bias get no gradient. Shapes: x [N, in], A [r, in], B [out, r]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        low_a, low_b = a.to(x.dtype), b.to(x.dtype)
        hidden = x @ low_a.t()
        out = functional.linear(x, weight, bias)
        out.addmm_(hidden, low_b.t(), alpha=scale)
        ctx.save_for_backward(x, weight, hidden, low_a, low_b)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, hidden, low_a, low_b = ctx.saved_tensors
        grad = grads[0]
        grad_hidden = (grad @ low_b).mul_(ctx.scale)
        grad_a = (grad_hidden.t() @ x).float()
        grad_b = (grad.t() @ hidden).float().mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            grad_x.addmm_(grad_hidden, low_a)
        return grad_x, None, None, grad_a, grad_b, None


_low_rank_linear: Callable[..., Tensor] = _LowRankLinear.apply


class LoraLinear(nn.Module):
    """A frozen linear layer and its low-rank update. Input [..., in], output [..., out]."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.in_features, self.out_features = base.in_features, base.out_features
        self.scale, self.dropout = scale, dropout
        device = base.weight.device
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features, device=device))
        self.lora_b = nn.Parameter(torch.empty(base.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.in_features)
        out: Tensor
        if self.dropout and torch.is_grad_enabled():
            low = functional.linear(functional.dropout(flat, self.dropout), self.lora_a.to(x.dtype))
            out = functional.linear(flat, self.weight, self.bias)
            out = out + self.scale * functional.linear(low, self.lora_b.to(x.dtype))
        else:
            out = _low_rank_linear(flat, self.weight, self.bias, self.lora_a, self.lora_b, self.scale)
        return out.view(*x.shape[:-1], self.out_features)


class LoraWeights:
    """The LoRA matrices of a model.

    Attributes:
        targets: sorted last names of the layers that carry LoRA.
        flat: float32 [P], every LoRA value; `flat.grad` [P] is where backward passes add their gradients.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, device: torch.device) -> None:
        model.requires_grad_(False)
        scale = update_scale(config.alpha, config.rank, rslora=config.rslora)
        layers = {}
        for name, base in block_linears(model).items():
            layers[name] = LoraLinear(base, config.rank, scale, config.dropout)
            _replace(model, name, layers[name])
        self.targets = sorted({name.rsplit(".", 1)[-1] for name in layers})
        self._parameters = _parameters(layers)
        self.flat = nn.Parameter(torch.zeros(sum(p.numel() for p in self._parameters.values()), device=device))
        self.flat.grad = torch.zeros_like(self.flat)
        self._bind(self.flat.grad)

    def _bind(self, gradient: Tensor) -> None:
        """Make every matrix and its gradient a view of the flat vectors; autograd then accumulates in place."""
        start = 0
        for parameter in self._parameters.values():
            part = slice(start, start + parameter.numel())
            parameter.data = self.flat.data[part].view(parameter.shape)
            parameter.grad = gradient[part].view(parameter.shape)
            start = part.stop

    def initialise(self, seed: int) -> None:
        """PEFT's default start: A uniform in +-1/sqrt(in), B zero. Drawn on the CPU: every device starts alike."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if name.endswith("lora_A.weight"):
                    drawn = torch.empty(parameter.shape)
                    bound = 1 / math.sqrt(parameter.shape[1])
                    parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))
                else:
                    parameter.zero_()

    def state(self) -> dict[str, Tensor]:
        """Float32 copies on the CPU, by the names that PEFT gives them."""
        return {name: p.detach().to("cpu", copy=True).contiguous() for name, p in self._parameters.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of another adapter.

        Raises:
            AdapterError: its tensors are not those of this model and rank.
        """
        wanted = {name: tuple(p.shape) for name, p in self._parameters.items()}
        given = {name: tuple(t.shape) for name, t in state.items()}
        if wanted != given:
            differing = sorted(dict(wanted.items() ^ given.items()))[:3]
            raise AdapterError(
                f"the adapter to continue from has other layers or another rank: {', '.join(differing)}",
                remedy="Use the same model and train.rank, or train.continue_adapter = false",
            )
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(state[name])


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers inside the transformer blocks by their full name: never the output head or the embeddings.

    Raises:
        ModelError: the model's blocks hold no plain linear layers.
    """
    prefixes = [name + "." for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(name.startswith(prefix) for prefix in prefixes)
    }
    if not found:
        raise ModelError("the model has no linear layers in its transformer blocks", remedy="Use a Llama-like model")
    return found


def _parameters(layers: Mapping[str, LoraLinear]) -> dict[str, nn.Parameter]:
    named = {}
    for name, layer in layers.items():
        named[f"{PEFT_PREFIX}{name}.lora_A.weight"] = layer.lora_a
        named[f"{PEFT_PREFIX}{name}.lora_B.weight"] = layer.lora_b
    return named


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)

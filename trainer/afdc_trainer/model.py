"""The base model: loaded once, run on packs. The only module that imports transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afdc.config import Device, TrainConfig
from afdc.errors import ModelError, UsageError
from afdc.precision import trainer_dtype
from afdc.prompting import Tokenizer
from afdc_trainer.attention import ATTENTION, Tree, tree_attention
from afdc_trainer.pack import Pack

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def choose_device(config: TrainConfig, local_rank: int = 0) -> torch.device:
    """`pick_device` for `train.device`."""
    return pick_device(config.device, "train.device", local_rank)


def pick_device(wanted: Device, setting: str, local_rank: int = 0) -> torch.device:
    """The wanted device, or for "auto" the GPU where there is one.

    Args:
        setting: what to call the wish in a message.

    Raises:
        UsageError: a GPU is asked for and torch sees none.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError(f"{setting} is cuda and torch sees no GPU", remedy=f"Set {setting} = auto")
    return torch.device("cuda", local_rank)


def choose_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """Auto is the fast one."""
    return fast_dtype(device) if config.dtype == "auto" else DTYPES[config.dtype]


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it, float32 elsewhere (docs/trainer.md has the measurement).

    torch.cuda.is_bf16_supported() is no help: it also says yes where bfloat16 is emulated.
    """
    if device.type == "cuda":
        return DTYPES[trainer_dtype(torch.cuda.get_device_capability(device))]
    return torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16") else torch.float32


def skip_unused_imports() -> None:
    """Keep transformers from importing scikit-learn, SciPy and pandas, for assisted generation and object detection.

    A quarter of the seconds that a training process takes to start [measured, docs/trainer.md].
    """
    import transformers.utils

    transformers.utils.is_sklearn_available = lambda: False
    transformers.utils.is_scipy_available = lambda: False


def load_tokenizer(path: Path) -> Tokenizer:
    """The model's tokenizer.

    Raises:
        ModelError: the folder holds none that can be read.
    """
    skip_unused_imports()
    from transformers import AutoTokenizer

    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as exc:
        raise ModelError(f"the tokenizer of {path} cannot be loaded: {exc}") from exc
    return tokenizer


def load_model(path: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The causal language model, frozen, in evaluation mode (its own dropout off).

    Raises:
        ModelError: the folder holds no model that can be read, or one whose layers do not attend by a mask.
    """
    skip_unused_imports()
    from transformers import AttentionInterface, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    AttentionInterface.register(ATTENTION, tree_attention)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation=ATTENTION, local_files_only=True
        )
    except (OSError, ValueError) as exc:
        raise ModelError(f"the model {path} cannot be loaded: {exc}") from exc
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if not kinds <= {"full_attention", "sliding_attention"}:
        raise ModelError(f"layers of type {', '.join(sorted(kinds))} cannot be trained yet", remedy="Use a Transformer")
    return model.to(device).eval()


def longest_path(model: Any) -> int:
    """Tokens a path may have: all of the context, or the sliding window where some layers have one."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) if _slides(config) else None
    return int(min(window or config.max_position_embeddings, config.max_position_embeddings))


def _slides(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    return "sliding_attention" in kinds if kinds else bool(getattr(config, "use_sliding_window", True))


def predictions(model: Any, pack: Pack) -> Tensor:
    """Float32 log-probabilities [M, vocabulary] at the pack's kept positions, under the model and its LoRA."""
    return _logprobs(_forward(model, pack, states=False))


def prompt_states(model: Any, pack: Pack) -> Tensor:
    """Float32 [B, width]: the last layer's state behind each prompt, from which the first answer token is predicted."""
    return _prompt_states(_forward(model, pack, states=True), pack)


def predictions_and_states(model: Any, pack: Pack) -> tuple[Tensor, Tensor]:
    """`predictions` and `prompt_states` of one forward pass."""
    output = _forward(model, pack, states=True)
    return _logprobs(output), _prompt_states(output, pack)


def _logprobs(output: Any) -> Tensor:
    return torch.log_softmax(output.logits[0].float(), dim=-1)


def _prompt_states(output: Any, pack: Pack) -> Tensor:
    last: Tensor = output.hidden_states[-1][0]
    return last[torch.from_numpy(pack.ends).to(last.device)].float()


def _forward(model: Any, pack: Pack, *, states: bool) -> Any:
    device = model.device
    tree = Tree.of(pack, device, model.dtype)
    return model(
        input_ids=torch.from_numpy(pack.ids).to(device)[None],
        position_ids=torch.from_numpy(pack.positions).to(device)[None],
        attention_mask=torch.zeros(
            (1, 1, 1, 1), dtype=model.dtype, device=device
        ),  # 4D: "ready made", so none is built
        logits_to_keep=torch.from_numpy(pack.keep).to(device),
        use_cache=False,
        output_hidden_states=states,
        tree=tree,
    )


def answer_loss(logprobs: Tensor, pack: Pack, label_smoothing: float) -> Tensor:
    """Sum over the pack's predictions of coef * cross-entropy, a scalar. `logprobs`: as `predictions` gives them.

    Label smoothing mixes each target token with the uniform distribution over the vocabulary (Szegedy et al. 2016).
    """
    at, targets = torch.from_numpy(pack.at).to(logprobs.device), torch.from_numpy(pack.targets).to(logprobs.device)
    nll = -logprobs[at, targets]
    if label_smoothing:
        nll = (1 - label_smoothing) * nll - label_smoothing * logprobs.mean(dim=-1)[at]
    return (nll * torch.from_numpy(pack.coefs).to(nll.device)).sum()

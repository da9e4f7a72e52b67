"""Which engine a setting asks for: vLLM in this process's care, or a server that runs already."""

from __future__ import annotations

import os
from pathlib import Path

from afdc.engine_config import EngineConfig
from afdc_pipeline.seams import Engine
from afdc_server.models import ModelRef
from afdc_server.remote.server import API_KEY_VARIABLE, RemoteServer


def open_engine(model: ModelRef, config: EngineConfig, logs: Path) -> Engine:
    """An engine that is not started yet. The key of a server comes from the environment, and so it is in no file.

    Args:
        logs: folder for its log.

    Raises:
        UsageError: `engine.url` is no URL. ModelError: the model's folder holds no tokenizer.
    """
    if not config.url:
        from afdc_server.engine.build import make_engine  # imports vLLM

        return make_engine(model, config, logs)
    from afdc_server.remote.engine import connect_engine

    server = RemoteServer(config.url, config.served_model, os.environ.get(API_KEY_VARIABLE, ""), config.patience_s)
    return connect_engine(model, server, config, logs)

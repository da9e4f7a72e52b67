"""The Engine seam on a server elsewhere: all of the local engine's logic, on another backend."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from afdc.engine_config import EngineConfig
from afdc_pipeline.seams import EngineInfo
from afdc_server.engine.build import load_tokenizer
from afdc_server.engine.engine import SupervisedEngine
from afdc_server.engine.environment import LOG_FILE
from afdc_server.engine.patience import within
from afdc_server.engine.settings import EngineSettings
from afdc_server.models import ModelRef
from afdc_server.remote.backend import HttpBackend
from afdc_server.remote.meeting import SAMPLE, Wanted
from afdc_server.remote.server import RemoteServer, server_root

DEVICE = DTYPE = "remote"  # the API does not tell either
IN_FLIGHT = 256  # requests at once: what one server of vLLM's own defaults takes into a step
PARTING_SECONDS = 10.0


class RemoteEngine(SupervisedEngine):
    """`SupervisedEngine` whose engine process is a server that others start and end.

    A server that goes away is waited for. When it is back its adapters are loaded again, and what was under way is
    asked again.
    """

    async def start(self) -> EngineInfo:
        """Wait for the server and ask what it is.

        Raises:
            EngineError: it is not ready within its patience, or cannot do what is needed.
            ModelError: it serves another model than the wanted one.
        """
        await super().start()
        backend = self.supervisor.backend
        if isinstance(backend, HttpBackend):
            facts = backend.facts
            length = min(facts.max_model_len or self._settings.max_model_len, self._settings.max_model_len)
            self._settings = replace(self._settings, max_model_len=length)
            self._info = replace(self._info, version=f"vllm {facts.version}", max_model_len=length)
        return self._info

    async def close(self) -> None:
        """Take our adapters off the server, which goes on without us, and close the connections."""
        with suppress(TimeoutError):  # a server that is away has forgotten them
            await within(PARTING_SECONDS, self._take_adapters_back())
        await super().close()

    async def _take_adapters_back(self) -> None:
        for entry in self._adapters.entries():
            await self._forget(entry.slot)


def connect_engine(model: ModelRef, server: RemoteServer, config: EngineConfig, logs: Path) -> RemoteEngine:
    """An engine on `server` that is not started yet.

    Args:
        model: the base model that the server should have; here only its tokenizer is used.
        config: bounds of requests, adapters and waiting; what describes the device is the server's own.
        logs: folder for engine.log, which says when the server came and went.

    Raises:
        UsageError: the URL is none. ModelError: the folder holds no tokenizer.
    """
    server = replace(server, url=server_root(server.url))
    tokenizer = load_tokenizer(model.path)
    sample = tuple(tokenizer(SAMPLE, add_special_tokens=False)["input_ids"])
    settings = remote_settings(config, server)
    info = EngineInfo(
        model=model.name,
        model_path=model.path,
        model_revision=model.revision,
        version="vllm",
        device=DEVICE,
        dtype=DTYPE,
        max_model_len=settings.max_model_len,
        chat=bool(tokenizer.chat_template),
        parameters=model.parameters,
    )
    log = logs.resolve() / LOG_FILE
    wanted = Wanted(model.name, model.path, server.served_name, sample)
    create = partial(HttpBackend, server, wanted, settings.max_in_flight, config.hang_timeout_s, log)
    return RemoteEngine(create, tokenizer, info, settings, log)


def remote_settings(config: EngineConfig, server: RemoteServer) -> EngineSettings:
    """`config` for a device that is not ours. The backend itself ends a start, before the supervisor's limit does."""
    limit = server.patience_s + 2 * config.hang_timeout_s
    return EngineSettings(
        device=DEVICE,
        dtype=DTYPE,
        max_model_len=config.max_model_len,
        max_num_seqs=IN_FLIGHT,
        max_num_batched_tokens=config.max_model_len,
        block_size=None,
        max_in_flight=config.max_in_flight or IN_FLIGHT,
        config=config.model_copy(update={"sleep_mode": False, "start_timeout_s": limit}),
    )

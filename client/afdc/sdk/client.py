"""The two clients. They have the same operations; `AsyncClient`'s are awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from afdc.sdk import engine
from afdc.sdk.adapters import Adapters
from afdc.sdk.core import get, reply_as
from afdc.sdk.datasets import Datasets
from afdc.sdk.faces import Face, S, operation
from afdc.sdk.health import parse_version, read_ready
from afdc.sdk.jobs import Jobs
from afdc.sdk.keys import Keys
from afdc.sdk.options import DEFAULT_RETRIES, DEFAULT_TIMEOUT_S, resolve_options
from afdc.sdk.retry import Clock
from afdc.sdk.seed_upload import TaskLike
from afdc.sdk.seeds import Seeds
from afdc.sdk.sending import AsyncSender, SyncSender, send
from afdc.wire.models import GenerateReply, Health, Prediction, SamplingIn, ScoreReply


class BaseClient(Face[S]):
    """What both clients have.

    Attributes:
        seeds, jobs, datasets, adapters, keys, engine: the resources of the server.
    """

    def __init__(self, sender: S) -> None:
        super().__init__(sender)
        self.seeds = Seeds(sender)
        self.jobs = Jobs(sender)
        self.datasets = Datasets(sender)
        self.adapters = Adapters(sender)
        self.keys = Keys(sender)
        self.engine = engine.EngineControl(sender)

    @operation
    async def predict(
        self, texts: str | Iterable[str], *, job: str | None = None, adapter: str | None = None
    ) -> list[Prediction]:
        """Labels of texts, in their order, each with its distribution; one that has none says why in `error`.

        Args:
            job: whose adapter answers; or
            adapter: the id of one.
        """
        return await engine.predict(self._sender, texts, job, adapter)

    @operation
    async def generate(
        self, prompts: Iterable[engine.PromptLike], *, sampling: SamplingIn | Mapping[str, Any] | None = None
    ) -> GenerateReply:
        """Completions of prompts (texts, or dicts as of `PromptIn`), in their order. For operators."""
        return await engine.generate(self._sender, prompts, sampling)

    @operation
    async def score(self, texts: str | Iterable[str], *, task: TaskLike, adapter: str | None = None) -> ScoreReply:
        """Natural log-probability of every label of the task after every text. For operators.

        Args:
            adapter: name of a loaded adapter; default: the base model.
        """
        return await engine.score(self._sender, texts, task, adapter)

    @operation
    async def health(self) -> Health:
        """Whether the server is there; no key is needed."""
        return await send(self._sender, get(reply_as(Health), "/healthz"))

    @operation
    async def ready(self) -> Health:
        """Whether the server can work: `status` is "ready", or `checks` says what is missing. No key is needed."""
        return await read_ready(self._sender)

    @operation
    async def version(self) -> str:
        """The version of the server."""
        return await send(self._sender, get(parse_version, "/openapi.json"))

    @operation
    async def close(self) -> None:
        """Close the connections. The client cannot be used after that."""
        await self._sender.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._sender.options.server}>"


class Client(BaseClient[SyncSender]):
    """A client that blocks. Use it as a context manager, or close it.

    Args:
        server: address; default AFDC_SERVER, then http://127.0.0.1:8741.
        api_key: default AFDC_API_KEY; no message and no repr shows it.
        timeout: longest silence of the server, in seconds; what takes long by nature is given more.
        max_retries: repeats of a request that failed, where a repeat can help and cannot do harm.
        transport: an httpx transport in place of the network.
        clock, sleep: time and chance, for tests.

    Raises:
        UsageError: an address, a key or a number that cannot be used.
    """

    def __init__(
        self,
        server: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        max_retries: int = DEFAULT_RETRIES,
        transport: httpx.BaseTransport | None = None,
        clock: Clock | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        options = resolve_options(server, api_key, timeout, max_retries)
        super().__init__(SyncSender(options, clock or Clock(), transport, sleep))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(BaseClient[AsyncSender]):
    """A client to await, on asyncio. Arguments and errors as of `Client`."""

    def __init__(
        self,
        server: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        max_retries: int = DEFAULT_RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        options = resolve_options(server, api_key, timeout, max_retries)
        super().__init__(AsyncSender(options, clock or Clock(), transport, sleep))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

"""The server process: API in the main thread, engine and jobs in threads beside it, until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType

import structlog
import uvicorn

from afdc.errors import AfdcError, EngineDiedError
from afdc_pipeline.seams import EngineInfo
from afdc_server.api.app import build_app
from afdc_server.api.connections import PatientProtocol
from afdc_server.heap import calm_collection
from afdc_server.service.services import Services
from afdc_server.service.settings import ServerSettings

DRAIN_S = 5
JSON_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)  # a local variable may hold a key
)
TEXT = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
ENGINE_CLOSE_S = 5.0  # with `shutdown_s` below the 30 s that supervisors of processes wait for
MIN_STOP_S = 1.0
KEEP_ALIVE_S = 75
LOOK_S = 0.02
FORWARDED = ("uvicorn", "asyncio")
"""Loggers of libraries whose lines take the form of our own."""
log = structlog.get_logger("afdc.server")


class _Server(uvicorn.Server):
    """uvicorn that ends with 0 on a signal, and tells event streams that it ends."""

    def __init__(self, config: uvicorn.Config, closing: Callable[[], None]) -> None:
        super().__init__(config)
        self._closing = closing
        self.asked_at: float | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, without raising the signal again at the end: a wanted end is no failure."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def ask_to_end(self) -> None:
        """As a signal does."""
        self._closing()
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: streams and jobs end, no new connection is taken."""
        self.asked_at = self.asked_at or time.monotonic()
        self._closing()
        super().handle_exit(sig, frame)


def serve(
    services: Services, listener: socket.socket, answers: Callable[[], None], ready: Callable[[], None] = lambda: None
) -> None:
    """Serve until SIGTERM or SIGINT; jobs under way go back into the queue with everything that they have finished.

    Args:
        answers: called once requests are answered; the engine may still be starting.
        ready: called once the engine has started, too.

    Raises:
        AfdcError: the engine could not be started.
    """
    settings = services.settings
    failed: list[BaseException] = []
    config = uvicorn.Config(
        build_app(services),
        http=PatientProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
        timeout_keep_alive=KEEP_ALIVE_S,
    )

    def closing() -> None:
        services.hub.close_streams()
        services.runner.stop()

    server = _Server(config, closing)

    def started(future: Future[EngineInfo]) -> None:
        if future.cancelled():
            return  # a signal came first
        error = future.exception()
        if error is None:
            log.info("engine ready", model=future.result().model, device=future.result().device)
            services.runner.start()
        else:
            failed.append(error)
            services.hub.close_streams()
            server.should_exit = True

    def lost(error: BaseException) -> None:
        """Without an engine the process ends with an error, so that whoever watches over it starts it again."""
        failed.append(error if isinstance(error, AfdcError) else EngineDiedError(str(error)))
        server.ask_to_end()

    services.runner.on_engine_lost = lost
    starting = services.engine.host.start()
    starting.add_done_callback(started)
    try:
        asyncio.run(_serve(server, listener, _tell(server, starting, answers, ready)))
    finally:
        spent = time.monotonic() - server.asked_at if server.asked_at else 0.0
        services.runner.close(max(MIN_STOP_S, settings.shutdown_s - spent))
        services.engine.host.close(ENGINE_CLOSE_S)
        services.db.close()
        services.instance.release()
    if failed:
        raise failed[0]


async def _serve(server: _Server, listener: socket.socket, tell: Coroutine[None, None, None]) -> None:
    telling = asyncio.create_task(tell)
    telling.add_done_callback(lambda task: server.ask_to_end() if not task.cancelled() and task.exception() else None)
    try:
        with calm_collection():
            await server.serve([listener])
    finally:
        if not telling.done():
            telling.cancel()
    if telling.done():
        telling.result()


async def _tell(
    server: _Server, starting: Future[EngineInfo], answers: Callable[[], None], ready: Callable[[], None]
) -> None:
    """What `serve` says of itself, in this order. An error ends the server."""
    while not server.started:
        await asyncio.sleep(LOOK_S)
    answers()
    while not starting.done():
        await asyncio.sleep(LOOK_S)
    if not starting.cancelled() and starting.exception() is None:
        ready()


def configure_logging(settings: ServerSettings) -> None:
    """structlog on stderr: JSON lines, or text on a terminal. No key and no text of a user is ever logged."""
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            JSON_TRACEBACKS if as_json else structlog.processors.StackInfoRenderer(),
            structlog.processors.JSONRenderer() if as_json else TEXT,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    for name in FORWARDED:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_Forward(logging.WARNING)], False


class _Forward(logging.Handler):
    """What libraries log, in the form of our own lines."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger(record.name).log(
            record.levelno, record.getMessage().strip(), logger=record.name, exc_info=record.exc_info
        )

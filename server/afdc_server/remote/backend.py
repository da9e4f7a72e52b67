"""A `vllm serve` as a Backend: what the supervisor and the engine ask for, over its OpenAI-compatible HTTP API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from afdc.errors import EngineDiedError, EngineError, RequestRejectedError
from afdc_pipeline.seams import Sampling
from afdc_server.engine.backend import AdapterSlot, DrawAnswer, ReadAnswer
from afdc_server.engine.patience import POLL_SECONDS, within
from afdc_server.engine.tasks import all_or_none
from afdc_server.remote.completions import COMPLETIONS, completion, draw_body, read_answers, read_body
from afdc_server.remote.http import HttpClient, Reply
from afdc_server.remote.loras import load_lora, unload_lora
from afdc_server.remote.meeting import KEY_REMEDY, UNAUTHORISED, ServerFacts, Wanted, check_tokenizer, meet
from afdc_server.remote.reads import ReadBatch, ReadBatcher
from afdc_server.remote.replies import DrawnReply, parse
from afdc_server.remote.server import RemoteServer

CHILL = 0.25  # a temperature: it multiplies the differences between logits by four
ROUNDING = 1.0  # nats; far above what rounding does to two reads of one prompt, far below what CHILL does to them
TOKEN_COUNTERS = (b"vllm:prompt_tokens_total", b"vllm:generation_tokens_total")
STARTING_PAUSE = 1.0  # seconds


class HttpBackend:
    """Our end of the connections to one server. When the server goes away, a new object takes this one's place.

    Args:
        connections: requests at once.
        hang_timeout_s: seconds without a sign of life after which the supervisor gives up on requests that wait.
        log: gets a line about each meeting with the server.
    """

    def __init__(
        self, server: RemoteServer, wanted: Wanted, connections: int, hang_timeout_s: float, log: Path
    ) -> None:
        self._server = server
        self._wanted = wanted
        self._connections = connections
        self._hang_timeout_s = hang_timeout_s
        self._log = log
        self._http: HttpClient | None = None
        self._facts: ServerFacts | None = None
        self._reads = ReadBatcher(self._send_reads)
        self._watch: asyncio.Task[None] | None = None
        self._signs = 0  # of life, other than replies
        self._killed = False

    @property
    def facts(self) -> ServerFacts:
        """What the server said when it was met. Raises EngineError before the start."""
        if self._facts is None:
            raise EngineError("the server has not been asked yet")
        return self._facts

    @property
    def _client(self) -> HttpClient:
        if self._http is None:
            raise EngineDiedError("the connection to the server is closed")
        return self._http

    async def start(self) -> None:
        """Wait for the server, and see that it can do what is needed.

        Raises:
            EngineError: it did not become ready within `patience_s`, or it cannot. ModelError: it serves another model.
        """
        self._http = HttpClient(self._server, self._connections)
        deadline, told = time.monotonic() + self._server.patience_s, ""
        while True:
            try:
                self._facts = await within(self._hang_timeout_s, self._meet())
                break
            except (EngineDiedError, TimeoutError) as exc:
                if str(exc) != told:
                    self._note(f"waiting: {exc}")
                told = str(exc)
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{self._server.url} was not ready within {self._server.patience_s:g} s: {told}",
                    remedy="Start it, or correct the URL; the same command goes on from there",
                )
            await asyncio.sleep(STARTING_PAUSE)
        self._note(f"ready: vLLM {self._facts.version} with {self._facts.model}")
        self._watch = asyncio.create_task(self._watch_tokens())

    async def _meet(self) -> ServerFacts:
        facts = await meet(self._client, self._server.url, self._wanted)
        checks = (
            check_tokenizer(self._client, self._server.url, facts.model, self._wanted),
            self._check_reads(facts.model),
        )
        await all_or_none(checks)
        return facts

    async def _check_reads(self, model: str) -> None:
        """One token, read at two temperatures: readiness, and that log-probs come for ids and before temperature."""
        prompt = list(self._wanted.sample_ids)
        ids = tuple(dict.fromkeys(prompt[:4]))
        bodies = [read_body(model, [prompt], ids, temperature) for temperature in (0.0, CHILL)]
        first, second = await all_or_none(self._client.ask(COMPLETIONS, body) for body in bodies)
        for reply in (first, second):
            if reply.status != 200:
                raise self._failure(reply, EngineError)
        [one], [other] = (read_answers(reply.content, [ids], self._server.url) for reply in (first, second))
        pairs = zip(one.logprobs, other.logprobs, strict=True)
        if any(value > 0 for value in one.logprobs) or not all(abs(a - b) <= ROUNDING or a == b for a, b in pairs):
            raise EngineError(
                f"{self._server.url} does not answer with the model's own log-probabilities",
                remedy="Start it with --logprobs-mode raw_logprobs",
            )

    async def close(self) -> None:
        self._killed = True
        self._reads.close()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        if self._http is not None:
            http, self._http = self._http, None
            await http.close()

    def alive(self) -> bool:
        return not self._killed and self._http is not None

    def steps(self) -> int:
        return self._signs + (self._http.replies if self._http is not None else 0)

    def kill(self) -> None:
        """Give the server up; it is not ours to end."""
        self._killed = True

    async def _watch_tokens(self) -> None:
        """Long answers leave a busy server silent: the growth of its token counters is a sign of life, too."""
        seen, replies = b"", -1
        while True:
            await asyncio.sleep(max(POLL_SECONDS, self._hang_timeout_s / 4))
            if self._client.replies == replies:
                with suppress(EngineDiedError, TimeoutError):
                    counters = await within(self._hang_timeout_s / 4, self._token_counters())
                    self._signs += bool(seen) and counters != seen
                    seen = counters
            replies = self._client.replies

    async def _token_counters(self) -> bytes:
        reply = await self._client.ask("/metrics")
        return b"\n".join(line for line in reply.content.splitlines() if line.startswith(TOKEN_COUNTERS))

    async def read(self, prompt: Sequence[int], ids: Sequence[int], adapter: AdapterSlot | None) -> ReadAnswer:
        return await self._reads.read(self._name(adapter), prompt, ids)

    async def _send_reads(self, batch: ReadBatch) -> list[ReadAnswer]:
        wanted = [read.ids for read in batch.reads]
        body = read_body(batch.reads[0].model, [list(read.prompt) for read in batch.reads], tuple(batch.ids))
        return read_answers(await self._complete(body), wanted, self._server.url)

    async def draw(
        self,
        prompt: Sequence[int],
        n: int,
        sampling: Sampling,
        adapter: AdapterSlot | None,
        ends: Sequence[int] = (),
    ) -> DrawAnswer:
        content = await self._complete(draw_body(self._name(adapter), prompt, n, sampling, ends))
        reply = parse(DrawnReply, content, self._server.url)
        if len(reply.choices) != n:
            raise RequestRejectedError(f"the server wrote {len(reply.choices)} of {n} texts")
        return DrawAnswer(tuple(map(completion, reply.choices)), reply.usage.cached_tokens)

    def _name(self, adapter: AdapterSlot | None) -> str:
        return adapter.name if adapter is not None else self.facts.model

    async def _complete(self, body: Mapping[str, Any]) -> bytes:
        """POST a completion.

        Raises:
            RequestRejectedError: this request can never succeed. EngineDiedError: the server is away.
        """
        reply = await self._client.insist(COMPLETIONS, body)
        if reply.status == 200:
            return reply.content
        if reply.status >= 500 and await self._answers():
            raise RequestRejectedError(f"the server fails at this request and at no other: {reply.message}")
        raise self._failure(reply, RequestRejectedError)

    def _failure(self, reply: Reply, refused: type[EngineError]) -> EngineError:
        """What a reply that is not 200 means; `refused` where the request itself was at fault."""
        if reply.status in UNAUTHORISED:
            return EngineError(f"{self._server.url} refuses our key: {reply.message}", remedy=KEY_REMEDY)
        if reply.status >= 500 or reply.status in (404, 408, 429):  # 404: it has restarted and lost the adapter
            return EngineDiedError(f"{self._server.url} answers {reply.status}: {reply.message}")
        return refused(f"the server refused this request: {reply.message}")

    async def _answers(self) -> bool:
        """Whether the server answers a harmless request, that is, whether only the other one is at fault."""
        prompt = list(self._wanted.sample_ids[:4])
        try:
            reply = await self._client.ask(COMPLETIONS, read_body(self.facts.model, [prompt], tuple(prompt[:1])))
        except EngineDiedError:
            return False
        return reply.status == 200

    async def add_adapter(self, adapter: AdapterSlot) -> None:
        await load_lora(self._client, adapter.name, adapter.folder)

    async def remove_adapter(self, adapter: AdapterSlot) -> None:
        await unload_lora(self._client, adapter.name)

    async def lend_device(self) -> None:
        """Nothing to do: the device is in another machine."""

    async def reclaim_device(self) -> None:
        """As `lend_device`."""

    def _note(self, text: str) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a", encoding="utf-8") as stream:
            stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self._server.url} {text}\n")

"""A `vllm serve` without a model: the same HTTP surface, answers that follow from the request, and faults on cue.

The log-prob of token t is -t, with an adapter -t/2. A text is its prompt's length and the number of the draw.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

POISON, REFUSED, NAN, CUT = 666, 400, 500, 777  # a prompt with this token: the server dies, or answers so, every time
MODEL = "m"


@dataclass
class Fault:
    """What happens to one completion request: a status with headers, or the connection cut after `cut` bytes."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None


@dataclass
class CannedServer:
    """State, cues and what was seen. Cues may be changed while it serves."""

    faults: deque[Fault] = field(default_factory=deque)
    delay: float = 0.0
    hold: asyncio.Event | None = None
    api_key: str = ""
    served: str = MODEL
    max_model_len: int = 512
    tokenises: bool = True
    healthy: bool = True
    knows_ids: bool = True
    processed: bool = False
    allows_loras: bool = True
    lora_failure: str = ""
    finish: str = "stop"
    broken_off: int = 0
    growing: bool = False
    broken: bool = False
    adapters: dict[str, str] = field(default_factory=dict)
    completions: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    most_at_once: int = 0
    connections: int = 0
    port: int = 0
    _now: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def up(self) -> None:
        """Listen; after `down` on the same port, with no adapters."""
        self.adapters.clear()
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """Die: every connection is reset, and no new one is taken."""
        if self._listener is not None:
            self._listener.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._writers.add(writer)
        self._tasks.add(task)
        self.connections += 1
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                while True:
                    await self._exchange(reader, writer)
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = {key.lower(): value for key, value in (line.split(": ", 1) for line in head[1:] if line)}
        body = await reader.readexactly(int(fields.get("content-length", 0)))
        path = head[0].split(" ")[1]
        self.paths.append(path)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            fault = await self._answer(path, fields, json.loads(body) if body else {})
        finally:
            self._now -= 1
        status, headers, content, cut = fault
        lines = [f"HTTP/1.1 {status} x", f"content-length: {len(content)}", "content-type: application/json"]
        data = "\r\n".join([*lines, *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode() + content
        writer.write(data if cut is None else data[:cut])
        await writer.drain()
        if cut is not None:
            raise ConnectionError

    async def _answer(
        self, path: str, fields: dict[str, str], asked: dict[str, Any]
    ) -> tuple[int, dict[str, str], bytes, int | None]:
        fault = Fault()
        if self.api_key and fields.get("authorization") != f"Bearer {self.api_key}":
            status, reply = 401, error(f"Unauthorized: {fields.get('authorization')}", 401)
        elif path == "/v1/completions":
            self.completions.append(asked)
            fault = self.faults.popleft() if self.faults else fault
            await asyncio.sleep(self.delay)
            if self.hold is not None:
                await self.hold.wait()
            status, reply = (fault.status, error("cue", fault.status)) if fault.status else await self._complete(asked)
        else:
            status, reply = self._answer_other(path, asked)
        content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        return status, fault.headers, content, fault.cut

    def _answer_other(self, path: str, asked: dict[str, Any]) -> tuple[int, Any]:
        if path == "/health":
            return (200, b"") if self.healthy else (503, b"")
        if path == "/v1/models":
            base = {"id": self.served, "root": self.served, "parent": None, "max_model_len": self.max_model_len}
            loras = [{"id": k, "root": v, "parent": self.served} for k, v in self.adapters.items()]
            return 200, {"data": [base, *loras]}
        if path == "/version":
            return 200, {"version": "0.32.0"}
        if path == "/tokenize" and self.tokenises:
            return 200, {"count": 1, "tokens": [ord(letter) for letter in asked["prompt"]]}
        if path == "/metrics":
            grown = len(self.paths) if self.growing else 0
            return (
                200,
                f'# HELP x\nvllm:generation_tokens_total{{engine="0"}} {grown}\nother {len(self.paths)}'.encode(),
            )
        if path.endswith("lora_adapter") and self.allows_loras:
            return self._change_adapters(path, asked)
        return 404, error("Not Found", 404)

    def _change_adapters(self, path: str, asked: dict[str, Any]) -> tuple[int, Any]:
        name = asked["lora_name"]
        if path == "/v1/unload_lora_adapter":
            return (200, b"ok") if self.adapters.pop(name, None) else (404, error(f"`{name}` cannot be found", 404))
        if name in self.adapters:
            return 400, error(f"The lora adapter '{name}' has already been loaded", 400)
        if self.lora_failure:
            return 500, error(self.lora_failure, 500)
        self.adapters[name] = asked["lora_path"]
        return 200, b"ok"

    async def _complete(self, asked: dict[str, Any]) -> tuple[int, Any]:
        prompts = asked["prompt"] if isinstance(asked["prompt"][0], list) else [asked["prompt"]]
        held = {token for prompt in prompts for token in prompt}
        if POISON in held:
            await self.down()
            raise ConnectionError
        if CUT in held:
            raise ConnectionError
        if REFUSED in held or any(len(prompt) > self.max_model_len for prompt in prompts):
            return 400, error("this prompt is refused", 400)
        if NAN in held or self.broken:
            return 500, error("Out of range float values are not JSON compliant", 500)
        if asked["model"] not in (self.served, *self.adapters):
            return 404, error(f"The model `{asked['model']}` does not exist.", 404)
        choices = [choice for prompt in prompts for choice in self._choices(prompt, asked)]
        return 200, {"choices": choices, "usage": {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}}}

    def _choices(self, prompt: list[int], asked: dict[str, Any]) -> list[dict[str, Any]]:
        if "logprob_token_ids" not in asked:
            drawn = {"token_logprobs": [-1.0, -2.0], "tokens": ["a", "b"], "top_logprobs": [{}, {}]}
            self.broken_off -= 1
            finish = "abort" if self.broken_off >= 0 else self.finish
            return [
                {"index": i, "text": f"{len(prompt)}/{i}", "finish_reason": finish, "logprobs": drawn}
                for i in range(asked["n"])
            ]
        scale = 2.0 if asked["model"] in self.adapters else 1.0
        heat = asked["temperature"] if self.processed and asked["temperature"] else 1.0
        ids = asked["logprob_token_ids"] if self.knows_ids else []
        top = {f"token_id:{token}": max(-token / scale / heat, -9999.0) for token in [1, *ids]}
        return [{"index": 0, "text": "", "finish_reason": "length", "logprobs": {"top_logprobs": [top]}}]


def error(message: str, code: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "param": None, "code": code}}


@asynccontextmanager
async def canned(**cues: Any) -> AsyncIterator[CannedServer]:
    """A server that listens."""
    server = CannedServer(**cues)
    await server.up()
    try:
        yield server
    finally:
        await server.down()

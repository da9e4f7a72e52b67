"""A canned OpenAI-compatible endpoint that answers as fast as one core can: what is measured is its caller.

    python endpoint.py --core 0 --delay-ms 50

Prints the port it listens on as one line, and serves until it is ended. It needs only the standard library, so that
every side of the comparison can start it. Each answer is `WORDS` words that differ from request to request and draw to
draw; /v1/completions answers with log-probs where they are asked for, as vLLM does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import zlib
from functools import cache
from typing import Any

MODEL = "canned"
WORDS = 32
HEAD = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


@cache
def filler() -> tuple[list[str], list[float]]:
    """Words of every answer but the first, and their log-probs."""
    return [f" word{i}" for i in range(WORDS - 1)], [round(-0.1 - i / 100, 4) for i in range(WORDS)]


def completion_choice(index: int, key: int, asked: dict[str, Any]) -> dict[str, Any]:
    words, values = filler()
    tokens = [f"{key:08x}-{index}", *words]
    logprobs: dict[str, Any] = {
        "text_offset": list(range(WORDS)),
        "token_logprobs": values,
        "tokens": tokens,
        "top_logprobs": [{token: value} for token, value in zip(tokens, values, strict=True)],
    }
    answer = {"index": index, "text": "".join(tokens), "finish_reason": "stop", "stop_reason": None}
    if ids := asked.get("logprob_token_ids"):
        logprobs["top_logprobs"] = [{f"token_id:{token}": -1.0 for token in ids}]
    return {**answer, "logprobs": logprobs if asked.get("logprobs") is not None else None}


def chat_choice(index: int, key: int) -> dict[str, Any]:
    text = "".join([f"{key:08x}-{index}", *filler()[0]])
    return {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}


def answer(path: str, body: bytes) -> tuple[bytes, bytes]:
    """Status and body for a request."""
    if path == "/v1/models":
        card = {"id": MODEL, "object": "model", "owned_by": "canned", "root": MODEL, "max_model_len": 8192}
        return b"200 OK", json.dumps({"object": "list", "data": [card]}).encode()
    if path == "/version":
        return b"200 OK", b'{"version": "canned"}'
    if not path.endswith("completions"):
        return (b"200 OK" if path == "/health" else b"404 Not Found"), b"{}"
    asked, key = json.loads(body), zlib.crc32(body)
    n = asked.get("n") or 1
    if path.endswith("chat/completions"):
        kind, choices = "chat.completion", [chat_choice(i, key) for i in range(n)]
    else:
        kind = "text_completion"
        choices = [completion_choice(i, key, asked) for i in range(n)]
    usage = {"prompt_tokens": 64, "completion_tokens": WORDS * n, "total_tokens": 64 + WORDS * n}
    reply = {"id": f"{key:x}", "object": kind, "created": 0, "model": MODEL, "choices": choices, "usage": usage}
    return b"200 OK", json.dumps(reply).encode()


class Connection(asyncio.Protocol):
    """One client's connection: requests one after the other, each answered after the delay."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].decode("latin-1").split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in head[1:])
            total = end + 4 + int(fields.get("content-length", 0))
            if len(self._buffer) < total:
                return
            body, self._buffer = self._buffer[end + 4 : total], self._buffer[total:]
            asyncio.get_running_loop().call_later(self._delay_s, self._reply, head[0].split(" ")[1], body)

    def _reply(self, path: str, body: bytes) -> None:
        status, content = answer(path, body)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(HEAD % (status, len(content)) + content)


async def serve(delay_s: float, port: int) -> None:
    """Listen on loopback and print the port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(delay_s), "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay-ms", type=float, default=0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--core", type=int, default=None, help="pin the process to this core")
    args = parser.parse_args()
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    asyncio.run(serve(args.delay_ms / 1000, args.port))


if __name__ == "__main__":
    main()

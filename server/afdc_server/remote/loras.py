"""Adapters of a `vllm serve`: loaded by a path that the server must see, too, and forgotten by name."""

from __future__ import annotations

from pathlib import Path

from afdc.errors import EngineDiedError, RequestRejectedError
from afdc_server.remote.http import HttpClient, Reply
from afdc_server.remote.replies import ModelList, parse

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
HOW_TO_ALLOW = (
    "Start the server with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment and "
    "--enable-lora --max-loras N --max-lora-rank R"
)
HOW_TO_SHARE = "The run's folder must be on a file system that the server sees under the same path"
PASSING = (408, 429, 502, 503, 504)  # 500 is not: so the server says that a folder cannot be loaded


async def load_lora(client: HttpClient, name: str, folder: Path) -> None:
    """Have the server load the adapter in `folder`; one that it has from there already is left as it is.

    One that it has under this name from elsewhere was left by a process that was killed: it is loaded anew.

    Raises:
        RequestRejectedError: it cannot or may not. EngineDiedError: it is away.
    """
    wanted = {"lora_name": name, "lora_path": str(folder)}
    reply = await client.insist(LOAD, wanted, again=PASSING)
    root = await _root(client, name) if reply.status == 400 else None
    if root not in (None, str(folder)):
        await unload_lora(client, name)
        reply = await client.insist(LOAD, wanted, again=PASSING)
        root = await _root(client, name) if reply.status == 400 else None
    if reply.status == 200 or root == str(folder):
        return
    if reply.status in PASSING:
        raise EngineDiedError(f"the server is not ready for an adapter: {reply.message}")
    raise RequestRejectedError(f"the server does not load it: {reply.message}", remedy=_remedy(reply))


def _remedy(reply: Reply) -> str:
    text = reply.message.lower()
    if reply.status == 404 and not text.startswith("not found"):
        return HOW_TO_SHARE
    return HOW_TO_ALLOW if reply.status in (404, 405) or "not enabled" in text else ""


async def _root(client: HttpClient, name: str) -> str | None:
    """The folder that the server serves under the name: a reply got lost, or an earlier run left it."""
    listed = await client.ask("/v1/models")
    if listed.status != 200:
        return None
    cards = parse(ModelList, listed.content, "/v1/models").data
    return next((card.root for card in cards if card.id == name and card.parent), None)


async def unload_lora(client: HttpClient, name: str) -> None:
    """Have the server forget an adapter; one that it does not know is forgotten already.

    Raises:
        RequestRejectedError, EngineDiedError: as `load_lora`.
    """
    reply = await client.insist(UNLOAD, {"lora_name": name}, again=PASSING)
    if reply.status in PASSING:
        raise EngineDiedError(f"the server does not let go of an adapter: {reply.message}")
    if reply.status not in (200, 404):
        raise RequestRejectedError(f"the server does not unload adapter {name}: {reply.message}")

"""Whether a server can work, and which version it is."""

from __future__ import annotations

from typing import Any

from afdc.sdk.core import Raw, check_status, get, no_body, parse_json, parse_reply
from afdc.sdk.exceptions import ReplyError
from afdc.sdk.sending import Sender
from afdc.wire.models import Health

UNREADY = 503
CANARY_PATIENCE_S = 60.0
"""Seconds for the one token that the server asks its engine for."""


async def read_ready(sender: Sender) -> Health:
    """`GET /readyz`, once: its 503 is an answer."""
    async with sender.open(get(no_body, "/readyz", patience_s=CANARY_PATIENCE_S)) as answer:
        raw = Raw(answer.status, answer.headers, await answer.read())
    if raw.status != UNREADY:
        check_status(raw, sender.clock.utc())
    return parse_reply(Health, raw.content)


def parse_version(raw: Raw) -> str:
    """The version that the OpenAPI document names.

    Raises:
        ReplyError: there is none.
    """
    document: Any = parse_json(raw)
    info = document.get("info") if isinstance(document, dict) else None
    version = info.get("version") if isinstance(info, dict) else None
    if not isinstance(version, str):
        raise ReplyError("the server's answer names no version")
    return version

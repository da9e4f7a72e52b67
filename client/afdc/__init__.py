"""Automatic Fine-tuning Data Construction: the light package, with the contracts that all parts share.

`from afdc import Client, AsyncClient` brings the Python client (`afdc.sdk`); `import afdc` alone brings nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afdc.sdk.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    """Import the client when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from afdc.sdk import client

    return getattr(client, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""Where the engine's server listens, and how long to bear with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from afdc.errors import UsageError

API_KEY_VARIABLE = "AFDC_ENGINE_API_KEY"
EXAMPLE = "Name it as http://host:8000"


@dataclass(frozen=True, slots=True)
class RemoteServer:
    """A `vllm serve`.

    Attributes:
        url: root of the server, `http://host:port`, without `/v1`.
        served_name: name of the base model there (`--served-model-name`); "" finds it by the wanted model's name.
        api_key: sent as a bearer token; never shown.
        patience_s: seconds to wait for a server that is away, when a run begins and when it restarts meanwhile.
        connect_timeout_s: seconds for a connection to open.
        tries: how often a request is sent before its failure counts.
    """

    url: str
    served_name: str = ""
    api_key: str = field(default="", repr=False)
    patience_s: float = 600.0
    connect_timeout_s: float = 10.0
    tries: int = 5


def server_root(url: str) -> str:
    """The URL as `RemoteServer` wants it: a trailing `/` or `/v1` is left out.

    Raises:
        UsageError: not an http(s) URL, or one that carries a password, which would end up in logs.
    """
    parts = urlsplit(url.strip())
    try:
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or too large
        whole = False
    if not whole or parts.query or parts.fragment:
        raise UsageError(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]} is no URL of a server", remedy=EXAMPLE)
    if "@" in parts.netloc:
        raise UsageError("the engine's URL carries a user name or password", remedy="Give an API key instead")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"

"""Where the server is and who asks: what was passed > AFDC_SERVER, AFDC_API_KEY > the default."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from afdc.errors import UsageError
from afdc.version import afdc_version
from afdc.wire.common import API_PREFIX

DEFAULT_SERVER = "http://127.0.0.1:8741"
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_RETRIES = 4
CONNECT_TIMEOUT_S = 10.0
EXAMPLE = f"For example {DEFAULT_SERVER}"


@dataclass(frozen=True)
class Options:
    """Settings of a client.

    Attributes:
        server: address without a slash at its end.
        timeout_s: longest silence of the server, in seconds.
        max_retries: repeats of a request that failed.
        is_local: the server is on this machine, so that no proxy is asked.
    """

    server: str
    api_key: str = field(repr=False)
    timeout_s: float
    max_retries: int
    is_local: bool

    def headers(self) -> dict[str, str]:
        """What every request carries."""
        found = {"User-Agent": f"afdc/{afdc_version()}", "Accept": "application/json"}
        return found | ({"Authorization": f"Bearer {self.api_key}"} if self.api_key else {})


def resolve_options(
    server: str | None,
    api_key: str | None,
    timeout: float,
    max_retries: int,
    environ: Mapping[str, str] | None = None,
) -> Options:
    """The settings that hold.

    Raises:
        UsageError: an address or a number that cannot be used, or a key that is none. No message holds the key.
    """
    environ = os.environ if environ is None else environ
    address = _check_server(server or environ.get("AFDC_SERVER") or DEFAULT_SERVER)
    key = _check_key(environ.get("AFDC_API_KEY", "") if api_key is None else api_key)
    if not timeout > 0:
        raise UsageError(f"timeout={timeout!r} is not above 0", remedy="Give seconds")
    if max_retries < 0:
        raise UsageError(f"max_retries={max_retries!r} is below 0", remedy="0 switches retries off")
    host = urlsplit(address).hostname or ""
    return Options(address, key, float(timeout), int(max_retries), _is_loopback(host))


def _check_server(text: str) -> str:
    parts = _split(text.strip())
    if parts.username is not None or parts.password is not None:
        raise UsageError("the server address holds a user name or a password", remedy="Pass the key as api_key")
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(f"{text[:200]!r} is not the address of a server", remedy=EXAMPLE)
    path = parts.path.rstrip("/").removesuffix(API_PREFIX)
    return f"{parts.scheme}://{parts.netloc}{path}"


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        _ = parts.port  # reading it is the check
    except ValueError:  # it would quote the address, which may hold a password
        raise UsageError("the server address cannot be read", remedy=EXAMPLE) from None
    return parts


def _check_key(key: str) -> str:
    """Keys are printable ASCII: anything else would come back to the user inside an error about headers."""
    key = key.strip()
    if not all("!" <= char <= "~" for char in key):
        raise UsageError("the API key holds a space or a character that no key has", remedy="Copy it again")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

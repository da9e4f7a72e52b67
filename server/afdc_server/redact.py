"""URLs may carry credentials, and errors name URLs: what is told to anybody goes through here first."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote

HIDDEN = "…"


def credentials_of(url: str) -> tuple[str, ...]:
    """What must not be told of a URL, the longest first: user and password, the password alone, values of its query.

    A password may hold an unescaped "/" or "@", as keys of S3 do: what stands before the last "@" counts.
    """
    rest, _, query = url.partition("://")[2].partition("?")
    user, has_user, _ = rest.rpartition("@")
    found = {value for _, value in parse_qsl(query)}
    if has_user and (":" in user or "/" not in user):
        found |= {user, user.partition(":")[2]}
    found |= {unquote(one) for one in found}
    return tuple(sorted(filter(None, found), key=len, reverse=True))


def redact(text: str, url: str) -> str:
    """`text` without the credentials of `url`."""
    for one in credentials_of(url):
        text = text.replace(one, HIDDEN)
    return text

"""What every resource has in common: replies, pages, problems.

Requests refuse unknown keys (`afdc.task.Model`); replies ignore them, so that an older client reads a newer server.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")

API_PREFIX = "/v1"
MAX_PAGE = 100
DEFAULT_PAGE = 20
MAX_ID = 64
MAX_NAME = 200

Id = Annotated[str, Field(max_length=MAX_ID)]
Name = Annotated[str, Field(max_length=MAX_NAME)]
Timestamp = Annotated[datetime, Field(description="UTC, RFC 3339")]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class Reply(BaseModel):
    """Base of everything that the server sends."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Page(Reply, Generic[T]):
    """A cursor page. The next one: the same request with `after=last_id`."""

    data: list[T]
    has_more: bool = False
    first_id: str | None = None
    last_id: str | None = None


class Fault(Reply):
    """One thing that is wrong with a request. `pointer`: RFC 6901, into the body; "" where it is not in the body."""

    pointer: str = ""
    code: str
    message: str


class Problem(Reply):
    """RFC 9457 problem details. `code` is stable; `retryable` says whether the same request may succeed later."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = ""
    code: str
    request_id: str = ""
    retryable: bool = False
    errors: list[Fault] = Field(default_factory=list)


class Deleted(Reply):
    """Answer to a DELETE."""

    id: str
    deleted: bool = True

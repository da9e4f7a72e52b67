"""How much of one kind may be under way at once. On the API's loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from afdc_server.service.errors import BusyError, TooLargeError


class Room:
    """Counts what is under way: direct requests leave the rest of the engine to jobs."""

    def __init__(self, what: str, *, retry_after_s: float) -> None:
        """`what`: for messages, in the plural, and for metrics."""
        self._what = what
        self._retry_after_s = retry_after_s
        self._taken = 0

    @contextmanager
    def take(self, count: int, limit: int) -> Iterator[None]:
        """Have room for `count` of them for the length of the block.

        Raises:
            TooLargeError: it is more than `limit` by itself. BusyError: beside what is under way.
        """
        if count > limit:
            raise TooLargeError(
                f"{count:,} {self._what} in one request, and {limit:,} are allowed", remedy="Send fewer at once"
            )
        if self._taken + count > limit:
            raise BusyError(
                f"{self._taken} {self._what} are under way",
                reason=self._what,
                remedy="Try again",
                retry_after_s=self._retry_after_s,
            )
        self._taken += count
        try:
            yield
        finally:
            self._taken -= count

"""Who pays for an engine request: a tally that the caller sets for everything it starts."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Tally:
    """Tokens of one job. Changed on the engine's loop alone."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def tokens(self) -> int:
        """What budgets count: read and written."""
        return self.prompt_tokens + self.completion_tokens


current_tally: ContextVar[Tally | None] = ContextVar("current_tally", default=None)


def charge(prompt: int, completion: int, cached: int) -> None:
    """Count tokens for whoever is set to pay; nobody, in a process with one job."""
    tally = current_tally.get()
    if tally is not None:
        tally.prompt_tokens += prompt
        tally.completion_tokens += completion
        tally.cached_tokens += cached

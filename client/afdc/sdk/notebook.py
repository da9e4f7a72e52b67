"""A job in a notebook: one output that is updated, by IPython."""

from __future__ import annotations

import importlib
from types import TracebackType
from typing import Any, Self

from afdc.sdk.render import job_html
from afdc.wire.jobs import Job


class NotebookView:
    """The table of the job, renewed in place."""

    def __init__(self) -> None:
        self._display: Any = importlib.import_module("IPython.display")  # there in every kernel, and no dependency
        self._shown: Any = None
        self._html = ""

    def show(self, job: Job) -> None:
        html = job_html(job)
        if html == self._html:
            return
        self._html = html
        content = self._display.HTML(html)
        if self._shown is None:
            self._shown = self._display.display(content, display_id=True)
        else:
            self._shown.update(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The last state stays."""

"""One job to go on with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

from afdc.sdk.adapters import AdapterHandle, read_adapter
from afdc.sdk.core import post, reply_as, route
from afdc.sdk.datasets import DatasetHandle, read_dataset
from afdc.sdk.exceptions import NotReadyError
from afdc.sdk.faces import Face, S, feed, operation
from afdc.sdk.render import job_html, job_line
from afdc.sdk.seeds import operation_key
from afdc.sdk.sending import Sender, send
from afdc.sdk.streaming import stream_events
from afdc.sdk.waiting import LIVE_POLL_S, look_call, require_success, wait_until_over
from afdc.wire.jobs import Event, Job, JobStatus

Action = Literal["cancel", "pause", "resume"]


class JobHandle(Face[S]):
    """A job. `job` is the state that was seen last; `refresh`, `wait` and the actions renew it."""

    def __init__(self, sender: S, job: Job) -> None:
        super().__init__(sender)
        self.job = job

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def status(self) -> JobStatus:
        """The status that was seen last."""
        return self.job.status

    @operation
    async def refresh(self) -> JobHandle[S]:
        """Look again."""
        self.job = (await send(self._sender, look_call(self.id))).job
        return self

    @operation
    async def wait(self, timeout: float | None = None, *, progress: bool = True) -> JobHandle[S]:
        """Come back when it has succeeded. A paused job is waited for, too; restarts of the server are sat out.

        Args:
            timeout: seconds; None: no limit.
            progress: show how it goes: in a notebook, in a line on the terminal, or in plain lines on stderr.

        Raises:
            JobFailedError, JobCancelledError: it ended in another way.
            WaitTimeoutError: the time is over; the job goes on.
        """
        if not progress:
            self.job = await wait_until_over(self._sender, self.id, timeout)
        else:
            from afdc.sdk.progress import view_for  # it may bring rich or IPython

            with view_for(self.id) as view:
                self.job = await wait_until_over(self._sender, self.id, timeout, view.show, LIVE_POLL_S)
        require_success(self.job)
        return self

    @feed
    def stream(self, *, after: int = 0) -> AsyncIterator[Event]:
        """As `Jobs.stream`."""
        return stream_events(self._sender, self.id, after)

    @operation
    async def dataset(self) -> DatasetHandle[S]:
        """The data set that it has made.

        Raises:
            NotReadyError: there is none yet.
        """
        return DatasetHandle(self._sender, await read_dataset(self._sender, await self._made("dataset")))

    @operation
    async def adapter(self) -> AdapterHandle[S]:
        """The adapter that it hands out.

        Raises:
            NotReadyError: there is none yet.
        """
        return AdapterHandle(self._sender, await read_adapter(self._sender, await self._made("adapter")))

    @operation
    async def cancel(self) -> JobHandle[S]:
        """Stop it; finished rounds are kept."""
        self.job = await act(self._sender, self.id, "cancel")
        return self

    @operation
    async def pause(self) -> JobHandle[S]:
        """Stop it at the next place from which it can go on."""
        self.job = await act(self._sender, self.id, "pause")
        return self

    @operation
    async def resume(self) -> JobHandle[S]:
        """Go on with a paused job."""
        self.job = await act(self._sender, self.id, "resume")
        return self

    async def _made(self, what: Literal["dataset", "adapter"]) -> str:
        found: str | None = getattr(self.job, what)
        if found is None:
            self.job = (await send(self._sender, look_call(self.id))).job
            found = getattr(self.job, what)
        if found is None:
            name = "data set" if what == "dataset" else what
            raise NotReadyError(f"job {self.id} has no {name} yet: it is {self.status}", remedy=await_remedy(self.job))
        return found

    def __repr__(self) -> str:
        return f"<JobHandle {self.id}: {job_line(self.job)}>"

    def _repr_html_(self) -> str:
        return job_html(self.job)


def await_remedy(job: Job) -> str:
    """What to do about a job that has not made something."""
    if not job.is_terminal:
        return "Wait for it first"
    return "This job hands out none" if job.status == "succeeded" else f"Go on with it first: afdc retry {job.id}"


async def act(sender: Sender, id: str, action: Action) -> Job:
    """`POST /jobs/{id}/{action}`. A repeat hears the first answer: meanwhile the job may have come to its end."""
    return await send(sender, post(reply_as(Job), route("jobs", id, action), key=operation_key()))

"""`client.jobs`: make data sets and adapters, and follow how it goes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Unpack

from afdc.config import Preset
from afdc.result import RoundResult
from afdc.sdk.core import M, checked, delete, get, parse_json, parse_text, post, reply_as, route
from afdc.sdk.faces import Face, S, feed, operation
from afdc.sdk.job_handle import JobHandle, act
from afdc.sdk.job_request import JobOptions, job_request
from afdc.sdk.paging import items
from afdc.sdk.seed_upload import SeedSource, TaskLike
from afdc.sdk.seeds import operation_key
from afdc.sdk.sending import Sender, send
from afdc.sdk.streaming import events_call, stream_events
from afdc.sdk.waiting import look_call, require_success, wait_until_over
from afdc.wire.common import Deleted, Page
from afdc.wire.jobs import Checkpoint, Checkpoints, Estimate, Event, Job, JobRetry, JobRounds, JobStatus, Preview

WORK_PATIENCE_S = 600.0
"""Seconds for what the engine does while the request waits."""


class Jobs(Face[S]):
    """Jobs. What you go on with (create, get, list, retry) comes as a `JobHandle`, the rest as a `Job`."""

    @operation
    async def create(
        self,
        seeds: SeedSource,
        *,
        task: TaskLike = None,
        eval: SeedSource | None = None,
        unlabeled: SeedSource | None = None,
        preset: Preset = "default",
        settings: Mapping[str, Any] | None = None,
        reviews: Sequence[str] = (),
        model: str = "",
        name: str = "",
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> JobHandle[S]:
        """Start a job. It goes on when this program ends: `jobs.get(id)` finds it again.

        Args:
            seeds: a seed set or its id, a JSONL or CSV file, or examples: dicts with text and label, or (text, label).
            task: instruction and labels, also as a file or a dict; default: inferred from the seeds.
            eval: gold examples to measure on, as the seeds; default: the holdout of the seeds.
            unlabeled: texts to label along, as the seeds; a plain text file has one on each line.
            settings: sections of docs/configuration.md over the preset: `{"augment": {"variants": 8}}`.
            reviews: ids of data sets whose reviewed rows join the seeds.
            model: base model; default: the one that is served.
            idempotency_key: the same key makes the same job once, however often this is called; default: a new one,
                which still holds for all attempts of this call.

        Raises:
            InvalidRequestError: examples, settings or the task cannot be used.
            InputError: a file that cannot be read.
        """
        options: JobOptions = {
            "task": task,
            "eval": eval,
            "unlabeled": unlabeled,
            "preset": preset,
            "settings": settings,
            "reviews": reviews,
            "model": model,
            "name": name,
            "metadata": metadata,
        }
        key = operation_key(idempotency_key)
        body = await job_request(self._sender, seeds, options, key)
        return JobHandle(self._sender, await send(self._sender, post(reply_as(Job), route("jobs"), body, key=key)))

    @operation
    async def preview(self, seeds: SeedSource, **options: Unpack[JobOptions]) -> Preview:
        """Up to 20 texts that such a job would generate, with reasons. No job is made; arguments as in `create`."""
        return await _ask(self._sender, Preview, "preview", seeds, options)

    @operation
    async def estimate(self, seeds: SeedSource, **options: Unpack[JobOptions]) -> Estimate:
        """Tokens, seconds and rows of such a job. No job is made; arguments as in `create`."""
        return await _ask(self._sender, Estimate, "estimate", seeds, options)

    @operation
    async def get(self, id: str, *, wait: float = 0.0) -> JobHandle[S]:
        """One job. With `wait` the server answers when it changes, at the latest after so many seconds."""
        return JobHandle(self._sender, (await send(self._sender, look_call(id, wait))).job)

    @feed
    async def list(
        self, *, status: JobStatus | None = None, after: str | None = None, limit: int | None = None
    ) -> AsyncIterator[JobHandle[S]]:
        """Jobs, newest first, page by page; with `status` those in that state alone."""
        wanted = items(self._sender, Job, route("jobs"), {"status": status}, after=after, limit=limit)
        async with aclosing(wanted) as jobs:
            async for job in jobs:
                yield JobHandle(self._sender, job)

    @operation
    async def wait(self, id: str, timeout: float | None = None) -> Job:
        """The job once it has succeeded. A paused one is waited for, too; restarts of the server are sat out.

        Args:
            timeout: seconds; None: no limit.

        Raises:
            JobFailedError, JobCancelledError: it ended in another way.
            WaitTimeoutError: the time is over; the job goes on.
        """
        return require_success(await wait_until_over(self._sender, id, timeout))

    @operation
    async def events(self, id: str, *, after: int = 0, limit: int = 100) -> Page[Event]:
        """One page of what has happened, behind the event `after`."""
        return await send(self._sender, events_call(id, after, limit))

    @feed
    def stream(self, id: str, *, after: int = 0) -> AsyncIterator[Event]:
        """Events behind `after` as they happen, each once and without a gap, until the job is over.

        Raises:
            UnreachableError: the server stays away; go on with the id of the last event as `after`.
        """
        return stream_events(self._sender, id, after)

    @operation
    async def cancel(self, id: str) -> Job:
        """Stop it; finished rounds are kept."""
        return await act(self._sender, id, "cancel")

    @operation
    async def pause(self, id: str) -> Job:
        """Stop it at the next place from which it can go on."""
        return await act(self._sender, id, "pause")

    @operation
    async def resume(self, id: str) -> Job:
        """Go on with a paused job."""
        return await act(self._sender, id, "resume")

    @operation
    async def retry(self, id: str, *, reviews: Sequence[str] = (), idempotency_key: str | None = None) -> JobHandle[S]:
        """Put a job that is over back into the queue, or with `reviews` (ids of data sets) make a new one out of it.

        Args:
            idempotency_key: as in `create`.
        """
        body = checked(JobRetry, reviews=list(reviews))
        call = post(reply_as(Job), route("jobs", id, "retry"), body, key=operation_key(idempotency_key))
        return JobHandle(self._sender, await send(self._sender, call))

    @operation
    async def delete(self, id: str) -> Deleted:
        """Delete a job that is over, with all that it made."""
        return await send(self._sender, delete(route("jobs", id)))

    @operation
    async def rounds(self, id: str) -> Sequence[RoundResult]:
        """The table by round."""
        return (await send(self._sender, get(reply_as(JobRounds), route("jobs", id, "rounds")))).data

    @operation
    async def metrics(self, id: str) -> Any:
        """What was measured while it ran, as the server's JSON."""
        return await send(self._sender, get(parse_json, route("jobs", id, "metrics"), {"format": "json"}))

    @operation
    async def metrics_csv(self, id: str) -> str:
        """`metrics` as CSV."""
        return await send(self._sender, get(parse_text, route("jobs", id, "metrics"), {"format": "csv"}))

    @operation
    async def checkpoints(self, id: str) -> Sequence[Checkpoint]:
        """The adapters that its rounds made, those of a running, cancelled or failed job too: `client.adapters`."""
        return (await send(self._sender, get(reply_as(Checkpoints), route("jobs", id, "checkpoints")))).data


async def _ask(sender: Sender, model: type[M], what: str, seeds: SeedSource, options: JobOptions) -> M:
    """`POST /jobs/{what}`: about a job that is not made."""
    body = await job_request(sender, seeds, options, operation_key())
    call = post(reply_as(model), route("jobs", what), body, repeatable=True, patience_s=WORK_PATIENCE_S)
    return await send(sender, call)

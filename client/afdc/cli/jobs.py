"""`afdc jobs`, `pause`, `resume`, `cancel` and `retry`."""

from __future__ import annotations

import sys

from afdc.cli.connect import ServerFlags, connect
from afdc.cli.job_view import show_job
from afdc.cli.output import age, data_console, message_console, print_json, print_table, visible
from afdc.sdk.job_handle import Action
from afdc.wire.jobs import Job, JobStatus


def list_command(flags: ServerFlags, status: JobStatus | None, limit: int, *, as_json: bool) -> None:
    """Body of `afdc jobs`: a table, or in a pipe a line a job with tabs in between."""
    with connect(flags) as client:
        found = [handle.job for handle in client.jobs.list(status=status, limit=limit + 1)]
    jobs = found[:limit]
    if as_json:
        print_json([job.model_dump(mode="json") for job in jobs])
    else:
        print_table(data_console(), [_row(job) for job in jobs], "name")
    if len(found) > limit:
        message_console().print(f"Older ones are left out: --limit {2 * limit} shows more", soft_wrap=True)
    elif not jobs:
        message_console().print(f"no job is {status}" if status else "no jobs yet", soft_wrap=True)


def _row(job: Job) -> dict[str, str]:
    final = job.accuracy.final if job.accuracy else None
    return {
        "job": visible(job.id),
        "status": job.status,
        "done": "" if job.is_terminal else f"{job.progress.fraction:.0%}",
        "rows": "" if job.rows is None else f"{job.rows:,}",
        "eval": "" if final is None else f"{final:.1%}",
        "age": age(job.created_at),
        "name": visible(job.name),
    }


def show_command(flags: ServerFlags, id: str, *, as_json: bool) -> None:
    """Body of `afdc jobs JOB`."""
    with connect(flags) as client:
        job = client.jobs.get(id).job
        show_job(job, client.jobs.rounds(id), as_json=as_json)


def steer_command(flags: ServerFlags, id: str, action: Action, *, as_json: bool) -> None:
    """Body of `afdc pause`, `resume` and `cancel`: prints the id and the new status."""
    with connect(flags) as client:
        steer = {"pause": client.jobs.pause, "resume": client.jobs.resume, "cancel": client.jobs.cancel}[action]
        job = steer(id)
    if as_json:
        print_json(job.model_dump(mode="json"))
    else:
        sys.stdout.write(f"{visible(job.id)}\t{job.status}\n")


def retry_command(flags: ServerFlags, id: str, reviews: tuple[str, ...], *, as_json: bool) -> None:
    """Body of `afdc retry`: prints the id of the job that goes on, which with reviews is a new one."""
    with connect(flags) as client:
        job = client.jobs.retry(id, reviews=reviews).job
    if as_json:
        print_json(job.model_dump(mode="json"))
    else:
        print_id(job)


def print_id(job: Job, *, with_hint: bool = True) -> None:
    """The id alone on stdout, so that it can be piped; what to do with it on stderr."""
    id = visible(job.id)
    sys.stdout.write(f"{id}\n")
    sys.stdout.flush()
    if with_hint:
        message_console().print(f"{job.status}; follow it with: afdc watch {id}", soft_wrap=True)

"""One job of a server, for a person and as JSON. All that came from the server is made harmless first."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from afdc.cli.output import data_console, duration, local_time, print_json, visible
from afdc.cli.summary import print_rounds, print_scores
from afdc.errors import AfdcError
from afdc.result import RoundResult
from afdc.sdk.exceptions import JobCancelledError, JobFailedError
from afdc.sdk.waiting import require_success
from afdc.wire.jobs import Job

STYLES = {"succeeded": "green", "failed": "red", "expired": "red", "cancelled": "yellow", "paused": "yellow"}


def show_job(job: Job, rounds: Sequence[RoundResult], *, as_json: bool) -> None:
    """On stdout."""
    if as_json:
        print_json({**job.model_dump(mode="json"), "rounds": [one.model_dump(mode="json") for one in rounds]})
    else:
        print_job(data_console(), job, rounds)


def print_job(console: Console, job: Job, rounds: Sequence[RoundResult]) -> None:
    """State, results, costs, and what to type next."""
    console.print(Text(visible(f"{job.name} ({job.id})" if job.name else job.id), style="bold"))
    for name, value, style in _lines(job):
        if value:
            console.print(Text.assemble(f"  {name:<10} ", (visible(value, 500), style)), soft_wrap=True)
    if job.accuracy is not None:
        print_scores(console, job.accuracy)
    print_rounds(console, rounds, job.stop_reason)
    steps = next_steps(job)
    if steps:
        console.print("\nNext")
        for step in steps:
            console.print(Text(f"  {step}"), soft_wrap=True)


def _lines(job: Job) -> list[tuple[str, str, str]]:
    """Name, value and style; a line without value is not shown."""
    model = f"{job.model} @ {job.model_revision}" if job.model_revision else job.model
    return [
        ("status", job_state(job), STYLES.get(job.status, "")),
        ("error", _error(job), "red"),
        ("model", model, ""),
        ("preset", job.preset, ""),
        ("seeds", job.seeds, ""),
        ("eval", job.eval or "", ""),
        ("unlabeled", job.unlabeled or "", ""),
        ("reviews", ", ".join(job.reviews), ""),
        ("parent", job.parent or "", ""),
        ("created", local_time(job.created_at), ""),
        ("took", _took(job), ""),
        ("spent", _spent(job), ""),
        ("rows", "" if job.rows is None else f"{job.rows:,}", ""),
        ("data set", job.dataset or "", ""),
        ("adapter", job.adapter or "", ""),
    ]


def job_state(job: Job) -> str:
    """For example "running: train, round 1, 43%, 3 min 2 s left"."""
    if job.is_terminal:
        return job.status
    parts = [job.stage, f"round {job.round}" if job.stage and job.round else ""]
    parts.append(f"{job.progress.fraction:.0%}" if job.progress.fraction else "")
    left = job.progress.eta_seconds
    parts.append(f"{duration(left)} left" if left is not None and job.status == "running" else "")
    return ": ".join(filter(None, (job.status, ", ".join(filter(None, parts)))))


def _error(job: Job) -> str:
    return f"{job.error.message} ({job.error.code})" if job.error else ""


def _took(job: Job) -> str:
    if job.started_at is None:
        return ""
    end = job.finished_at or job.updated_at
    return duration(max((end - job.started_at).total_seconds(), 0.0))


def _spent(job: Job) -> str:
    used = job.usage
    parts = [
        f"{used.prompt_tokens:,} prompt tokens" if used.prompt_tokens else "",
        f"{used.completion_tokens:,} completion tokens" if used.completion_tokens else "",
        f"engine {duration(used.engine_seconds)}" if used.engine_seconds else "",
        f"trainer {duration(used.trainer_seconds)}" if used.trainer_seconds else "",
    ]
    return ", ".join(filter(None, parts))


def next_steps(job: Job) -> list[str]:
    """Commands that make sense now."""
    id = visible(job.id)
    if job.status == "succeeded":
        predict = [f'afdc predict --job {id} "a new text"'] if job.adapter else []
        return [f"afdc pull {id}", f"afdc export {id} --format messages --output FILE", *predict]
    if job.is_terminal:
        return [f"afdc retry {id}"] if is_worth_retrying(job) else []
    return [f"afdc resume {id}" if job.status == "paused" else f"afdc watch {id}"]


def is_worth_retrying(job: Job) -> bool:
    """Whether the same request may succeed."""
    return job.error is None or job.error.retryable


class JobEndedError(AfdcError):
    """The job ended without success."""

    code = "job_failed"

    def __init__(self, message: str, exit_code: int, *, remedy: str) -> None:
        super().__init__(message, remedy=remedy)
        self.exit_code = exit_code


def check_end(job: Job) -> None:
    """Pass a job that succeeded.

    Raises:
        JobEndedError: it failed or expired (exit code 6), or it was cancelled (7).
    """
    try:
        require_success(job)
    except (JobFailedError, JobCancelledError) as exc:
        retry = f"Its finished rounds are kept; go on with: afdc retry {visible(job.id)}"
        raise JobEndedError(
            exc.message, exc.exit_code, remedy=retry if is_worth_retrying(job) else _remedy(job)
        ) from exc


def _remedy(job: Job) -> str:
    by_user = job.error is not None and job.error.category == "user"
    return "Change what was asked for, and submit it as a new job" if by_user else "The server's log has the details"

"""What the client raises, beside UsageError, InputError and StorageError of `afdc.errors`.

AfdcError
├── ApiError                exit 6   the server answered with a problem
│   ├── AuthError           exit 3   401, 403: no key, a wrong one, or one that may not do this
│   ├── NotFoundError       exit 4   404, 410
│   ├── InvalidRequestError exit 5   400, 413, 415, 422: the request must change; `problem.errors` says where
│   ├── ConflictApiError    exit 5   409: not in the present state
│   ├── RateLimitedError    exit 8   429: too many requests for now
│   └── ServerFailedError   exit 8   5xx
├── UnreachableError        exit 8   no answer: not started, wrong address, cut off, or too slow
├── ReplyError              exit 8   an answer that this client cannot read: no AFDC server, or another version
├── DownloadError           exit 6   a file that arrived is not the one that was listed, or its path leaves the folder
├── NotReadyError           exit 5   the job has not made that yet
├── JobFailedError          exit 6   the job failed or expired
├── JobCancelledError       exit 7   the job was cancelled
└── WaitTimeoutError        exit 8   the job goes on, and `timeout` is over (a TimeoutError, too)
"""

from __future__ import annotations

from typing import ClassVar

from afdc.errors import AfdcError
from afdc.wire.common import Problem
from afdc.wire.jobs import Job
from afdc.wording import one_line

SHOWN_FAULTS = 5
SHOWN_CHARS = 500


class ApiError(AfdcError):
    """The server answered with a problem (RFC 9457).

    Attributes:
        problem: all that it said; `problem.errors[].pointer` leads to the place in the request.
        status: HTTP status.
        code: stable name of the problem.
        request_id: what the operator finds it by in the log; "" if there is none.
        retryable: whether the same request may succeed later.
        retry_after: seconds that the server asked to wait, or None.
    """

    hint: ClassVar[str] = ""

    def __init__(
        self,
        problem: Problem,
        status: int,
        request_id: str = "",
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(_describe(problem, request_id), remedy=self.hint)
        self.problem = problem
        self.status = status
        self.code = problem.code
        self.request_id = request_id
        self.retryable = retryable
        self.retry_after = retry_after


class AuthError(ApiError):
    exit_code = 3
    hint = "Set AFDC_API_KEY, or pass api_key, to a key that may do this"


class NotFoundError(ApiError):
    exit_code = 4


class InvalidRequestError(ApiError):
    exit_code = 5


class ConflictApiError(ApiError):
    exit_code = 5


class RateLimitedError(ApiError):
    exit_code = 8
    hint = "Wait and try again"


class ServerFailedError(ApiError):
    exit_code = 8
    hint = "Try again; if it stays, the server's log has the reason"


class UnreachableError(AfdcError):
    """No answer came. `sent`: whether the server may have received the request, and may have acted on it."""

    exit_code = 8
    code = "unreachable"

    def __init__(self, message: str, *, sent: bool = True, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.sent = sent


class ReplyError(AfdcError):
    exit_code = 8
    code = "unreadable_reply"


class DownloadError(AfdcError):
    code = "download"


class NotReadyError(AfdcError):
    exit_code = 5
    code = "not_ready"


class JobFailedError(AfdcError):
    """`job` is the job as it ended; `job.error` says whether the request or the server is at fault."""

    code = "job_failed"

    def __init__(self, job: Job) -> None:
        super().__init__(_describe_failure(job), remedy=_remedy(job))
        self.job = job


class JobCancelledError(AfdcError):
    """`job` is the job as it ended; rounds that were finished are kept."""

    exit_code = 7
    code = "job_cancelled"

    def __init__(self, job: Job) -> None:
        super().__init__(f"job {job.id} was cancelled")
        self.job = job


class WaitTimeoutError(AfdcError, TimeoutError):
    """`job` is the job when the time was over; it goes on."""

    exit_code = 8
    code = "wait_timeout"

    def __init__(self, job: Job, timeout: float) -> None:
        message = f"job {job.id} is still {job.status} after {timeout:g} s"
        super().__init__(message, remedy="It goes on: wait again, with a longer timeout")
        self.job = job


BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidRequestError,
    401: AuthError,
    403: AuthError,
    404: NotFoundError,
    409: ConflictApiError,
    410: NotFoundError,
    413: InvalidRequestError,
    415: InvalidRequestError,
    422: InvalidRequestError,
    429: RateLimitedError,
}


def error_type(status: int) -> type[ApiError]:
    """The class for an HTTP status."""
    return BY_STATUS.get(status, ServerFailedError if status >= 500 else ApiError)


def _describe(problem: Problem, request_id: str) -> str:
    text = one_line(problem.detail or problem.title, SHOWN_CHARS).removesuffix(".")
    news = [fault for fault in problem.errors if one_line(fault.message, 100).removesuffix(".") not in text]
    faults = [
        f"{one_line(fault.pointer, 100)}: {one_line(fault.message, 200)}"
        if fault.pointer and fault.pointer not in fault.message
        else one_line(fault.message, 200)
        for fault in news[:SHOWN_FAULTS]
    ]
    more = len(news) - len(faults)
    told = "; ".join(faults) + (f"; and {more} more" if more > 0 else "")
    return text + (f" ({told})" if told else "") + (f" [request {one_line(request_id, 80)}]" if request_id else "")


def _describe_failure(job: Job) -> str:
    if job.error is None:
        return f"job {job.id} {'has expired' if job.status == 'expired' else 'failed'}"
    return f"job {job.id} failed: {one_line(job.error.message, SHOWN_CHARS).removesuffix('.')} ({job.error.code})"


def _remedy(job: Job) -> str:
    if job.error is None or not job.error.retryable:
        by_user = job.error is not None and job.error.category == "user"
        return "Change the request and create a new job" if by_user else "The server's log has the details"
    return f"Its finished rounds are kept; go on with jobs.retry({job.id!r})"

"""`python -m afdc_trainer.encoder job.json`: the fits of one encoder job, in a process of its own.

Writes `result.json` last of all, also when it fails. Exit codes are those of afdc.errors.
"""

from __future__ import annotations

import sys
import traceback

from afdc.encoding import EncoderJob, EncoderResult, finished_encoding
from afdc.errors import AfdcError
from afdc.files import write_json
from afdc_trainer.launch import UNFORESEEN
from afdc_trainer.process import read_job, watch_parent


def main(arguments: list[str]) -> int:
    """Run the job of the given file and return the exit code."""
    job = read_job(arguments, EncoderJob, "afdc_trainer.encoder", "an encoder job")
    if job is None:
        return 2
    watch_parent()
    if finished_encoding(job) is not None:
        return 0
    result, code = _attempt(job)
    write_json(job.result, result.model_dump(mode="json"))
    return code


def _attempt(job: EncoderJob) -> tuple[EncoderResult, int]:
    try:
        from afdc_trainer.encoder.run import run  # imports torch: only where there is something to do

        return run(job), 0
    except AfdcError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return EncoderResult(status="failed", error=str(exc)), exc.exit_code
    except Exception as exc:  # noqa: BLE001,RUF100  # last stop of the process: the parent reads the reason in result.json
        traceback.print_exc()
        return EncoderResult(status="failed", error=f"{type(exc).__name__}: {exc}"), UNFORESEEN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

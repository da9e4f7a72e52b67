"""From the arguments of `jobs.create`, `preview` and `estimate` to a `JobCreate`: what is no seed set becomes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from afdc.config import Preset
from afdc.errors import UsageError
from afdc.sdk.core import checked
from afdc.sdk.seed_upload import SeedSource, TaskLike, is_stored, read_task_like
from afdc.sdk.seeds import read_seeds, resolve_seeds
from afdc.sdk.sending import Sender
from afdc.wire.jobs import JobCreate


class JobOptions(TypedDict, total=False):
    """What `jobs.create` takes beside the seeds and the idempotency key; it explains each."""

    task: TaskLike
    eval: SeedSource | None
    unlabeled: SeedSource | None
    preset: Preset
    settings: Mapping[str, Any] | None
    reviews: Sequence[str]
    model: str
    name: str
    metadata: Mapping[str, str] | None


async def job_request(sender: Sender, seeds: SeedSource, options: JobOptions, key: str) -> JobCreate:
    """Upload what is no seed set yet, and name it in a request.

    Args:
        key: the uploads' own idempotency keys are made from it, so that the same call names the same seed sets.

    Raises:
        UsageError: a task beside a seed set, which has one.
    """
    rest: dict[str, Any] = {**options}
    task = read_task_like(rest.pop("task", None))
    if task is not None and is_stored(seeds):
        raise UsageError("the seed set has a task of its own", remedy="Leave task out, or pass examples")
    gold, unlabeled = rest.pop("eval", None), rest.pop("unlabeled", None)
    found: dict[str, str] = {}
    found["seeds"], task = await resolve_seeds(sender, seeds, "seeds", task, f"{key}.seeds")
    if gold is not None:
        if task is None and not is_stored(gold):  # gold has the labels of the seeds, whichever it shows
            task = (await read_seeds(sender, found["seeds"])).task
        found["eval"], _ = await resolve_seeds(sender, gold, "gold", task, f"{key}.eval")
    if unlabeled is not None:
        found["unlabeled"], _ = await resolve_seeds(sender, unlabeled, "unlabeled", None, f"{key}.unlabeled")
    rest["settings"] = dict(rest.get("settings") or {})
    rest["metadata"] = dict(rest.get("metadata") or {})
    rest["reviews"] = list(rest.get("reviews") or ())
    return checked(JobCreate, **found, **rest)

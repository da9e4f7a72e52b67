"""The files of a submission as seed sets of the server."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from afdc.cli.output import message_console, visible
from afdc.errors import AfdcError, UsageError
from afdc.inputs import read_task
from afdc.sdk.client import Client
from afdc.sdk.seed_upload import is_stored
from afdc.task import Task
from afdc.wire.seeds import SeedKind, SeedSet


@dataclass(frozen=True)
class SeedIds:
    """What a job is made of, as ids of seed sets."""

    seeds: str
    eval: str | None = None
    unlabeled: str | None = None


class Uploads:
    """Seed sets that one command makes. The same key makes the same sets, however often they are sent."""

    def __init__(self, client: Client, key: str) -> None:
        self._client = client
        self._key = key
        self._made: list[str] = []
        self._console = message_console()

    def send(self, paths: Mapping[str, Path]) -> SeedIds:
        """Upload seeds, gold and texts without labels.

        A path that is the id of a seed set, and no file, stands for that set.

        Raises:
            UsageError: a task beside a seed set, which has one.
            AfdcError: a file that cannot be read, or that the server refuses.
        """
        task = read_task(paths["task"]) if "task" in paths else None
        seeds, task = self._seeds(str(paths["seeds"]), task, needs_task="eval" in paths)
        return SeedIds(seeds, self._id(paths, "eval", "gold", task), self._id(paths, "unlabeled", "unlabeled", None))

    def delete(self) -> None:
        """Take away what was made; what cannot be deleted stays, since it does no harm."""
        for id in self._made:
            with suppress(AfdcError):
                self._client.seeds.delete(id)

    def _seeds(self, source: str, task: Task | None, needs_task: bool) -> tuple[str, Task | None]:
        """Id of the seeds and their task, which gold has too, whichever labels it shows."""
        if not is_stored(source):
            stored = self._store(source, "seeds", "seeds", task)
            return stored.id, stored.task
        if task is not None:
            raise UsageError("the seed set has a task of its own", remedy="Leave --task out")
        return source, self._client.seeds.get(source).task if needs_task else None

    def _id(self, paths: Mapping[str, Path], name: str, kind: SeedKind, task: Task | None) -> str | None:
        if name not in paths:
            return None
        source = str(paths[name])
        return source if is_stored(source) else self._store(source, name, kind, task).id

    def _store(self, source: str, name: str, kind: SeedKind, task: Task | None) -> SeedSet:
        self._console.print(f"uploading {source}", style="dim", soft_wrap=True)
        stored = self._client.seeds.create(source, task=task, kind=kind, idempotency_key=f"{self._key}.{name}")
        self._made.append(stored.id)
        self._console.print(f"  {describe(stored)}", style="dim", soft_wrap=True)
        return stored


def describe(stored: SeedSet) -> str:
    """For example "seed_…: 12 texts, 3 labels, 1 duplicate"."""
    report = stored.report
    counts = [(report.rows, "text"), (len(report.per_label), "label"), (report.holdout_rows, "held-out text")]
    counts += [(report.duplicates, "duplicate"), (report.contradictions, "contradiction"), (report.skipped, "skipped")]
    told = [f"{n:,} {name}{'s' if n != 1 and name != 'skipped' else ''}" for n, name in counts if n]
    return f"{visible(stored.id)}: {', '.join(told)}"

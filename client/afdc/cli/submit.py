"""`afdc submit`: settle the settings, upload the files, start the job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.text import Text

from afdc.cli.connect import ServerFlags, connect
from afdc.cli.jobs import print_id
from afdc.cli.output import data_console, message_console, print_json, visible
from afdc.cli.run import RunFlags
from afdc.cli.summary import flatten, print_cost
from afdc.cli.upload import Uploads
from afdc.cli.watch import numbers, watch
from afdc.config import Preset
from afdc.errors import InterruptedRunError, UsageError
from afdc.sdk.client import Client
from afdc.sdk.exceptions import ServerFailedError, UnreachableError
from afdc.sdk.job_handle import JobHandle
from afdc.sdk.seeds import operation_key
from afdc.sdk.sending import SyncSender
from afdc.settings import Settings, load_settings
from afdc.wire.jobs import Estimate

T = TypeVar("T")
OPERATORS = ("model", "engine")


@dataclass(frozen=True)
class Submission:
    """The command line: None is a flag that was not given."""

    paths: Mapping[str, Path | None]
    options: Mapping[str, Any]
    assignments: tuple[str, ...] = ()
    name: str = ""
    key: str | None = None

    def settle(self, config: Path | None) -> Settings:
        """All layers of settings.

        Raises:
            UsageError: one of them is wrong, no seeds are named, or --set names what the server settles.
        """
        taken = next((one for one in self.assignments if one.split("=")[0].split(".")[0].strip() in OPERATORS), None)
        if taken is not None:
            remedy = "Leave it out: model and engine are settled by whoever runs the server"
            raise UsageError(f"--set {taken[:80]}: not of a job on a server", remedy=remedy)
        settings = load_settings(RunFlags(self.paths, self.options).layer(), self.assignments, config)
        if "seeds" not in settings.paths:
            raise UsageError("--seeds missing", remedy="For example: afdc submit --seeds S.jsonl --task T.json")
        return settings


@dataclass(frozen=True)
class Asked:
    """What is asked of the server. `settings`: over the preset."""

    paths: Mapping[str, Path]
    preset: Preset
    settings: Mapping[str, Any]
    name: str


def submit_command(flags: ServerFlags, wanted: Submission, *, watching: bool, dry_run: bool, as_json: bool) -> None:
    """Body of `afdc submit`.

    Raises:
        AfdcError: the job was not made, or with --watch it did not succeed; the exit code says why.
    """
    if dry_run and watching:
        raise UsageError("--dry-run makes no job that --watch could follow", remedy="Leave one of them out")
    asked = _ask(wanted.settle(flags.config), wanted.name)
    with connect(flags) as client:
        if dry_run:
            _show_estimate(_estimate(client, asked), asked, as_json)
            return
        key = operation_key(wanted.key)
        made = _once(key, lambda: _create(client, asked, key))
        if as_json and not watching:
            print_json(made.job.model_dump(mode="json"))
        elif not as_json:
            print_id(made.job, with_hint=not watching)
        if watching:
            watch(client, made.id, as_json=as_json)


def _ask(settings: Settings, name: str) -> Asked:
    """The request: what was given, without what the operator settles."""
    left_out = [key for key in OPERATORS if key in settings.given]
    if left_out:
        told = f"note: {' and '.join(left_out)} of the settings are left out: the server has its own"
        message_console().print(told, style="dim", soft_wrap=True)
    given = {key: value for key, value in settings.given.items() if key not in {*OPERATORS, "preset"}}
    return Asked(settings.paths, settings.config.preset, given, name)


def _create(client: Client, asked: Asked, key: str) -> JobHandle[SyncSender]:
    sets = Uploads(client, key).send(asked.paths)
    return client.jobs.create(
        sets.seeds,
        eval=sets.eval,
        unlabeled=sets.unlabeled,
        preset=asked.preset,
        settings=asked.settings,
        name=asked.name,
        idempotency_key=key,
    )


def _once(key: str, work: Callable[[], T]) -> T:
    """Do the work; where it is not known whether the server has done it, say how to repeat it without harm."""
    repeat = f"Repeat the command with --idempotency-key {key}: it makes the job once"
    try:
        return work()
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted; the job may have been made", remedy=repeat) from None
    except (UnreachableError, ServerFailedError) as exc:
        if not isinstance(exc, UnreachableError) or exc.sent:
            message_console().print(f"The job may have been made. {repeat}", soft_wrap=True)
        raise


def _estimate(client: Client, asked: Asked) -> Estimate:
    """What it would cost. What is uploaded for that is deleted again."""
    uploads = Uploads(client, operation_key())
    try:
        sets = uploads.send(asked.paths)
        return client.jobs.estimate(
            sets.seeds, eval=sets.eval, unlabeled=sets.unlabeled, preset=asked.preset, settings=asked.settings
        )
    finally:
        uploads.delete()


def _show_estimate(found: Estimate, asked: Asked, as_json: bool) -> None:
    if as_json:
        print_json({**found.model_dump(mode="json"), "preset": asked.preset, "settings": asked.settings})
    else:
        print_estimate(data_console(), found, asked)


def print_estimate(console: Console, found: Estimate, asked: Asked) -> None:
    """The settings that were given, then plan and time as `afdc run --dry-run` shows them."""
    console.print(Text("Settings (all others are those of the preset)", style="bold"))
    for name, value in flatten({"preset": asked.preset, **asked.settings}):
        console.print(Text(f"  {name} = {value}"), soft_wrap=True)
    plan = {visible(name, 40): _plain(value) for name, value in found.plan.items()}
    plan.setdefault("candidates", found.rows)
    seconds = found.plan.get("seconds")
    plan["seconds"] = numbers(seconds if isinstance(seconds, Mapping) else {"total": found.seconds})
    print_cost(console, plan)


def _plain(value: Any) -> Any:
    """A value of the server's plan that can do nothing to a terminal."""
    if isinstance(value, Mapping):
        return {visible(str(name), 40): _plain(one) for name, one in value.items()}
    return value if isinstance(value, bool | int | float) else visible(str(value))

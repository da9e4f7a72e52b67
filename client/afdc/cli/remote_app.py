"""Commands that ask a server, and their flags. Each body imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from afdc.cli.options import (
    Assignments,
    AugmentRounds,
    Config,
    Eval,
    FormatName,
    JobId,
    Json,
    PresetFlag,
    Rounds,
    Seed,
    SeedsTask,
    Server,
    SplitName,
    StatusName,
    StrategyFlag,
    TargetRows,
    Threshold,
    Unlabeled,
    Variants,
    taking,
)

remote_app = typer.Typer()
keys_app = typer.Typer(help="API keys of the server; for administrators.", no_args_is_help=True, rich_markup_mode=None)
remote_app.add_typer(keys_app, name="keys")


def _remote(server: Server = None, config: Config = None) -> Any:
    """The ServerFlags of the options that say which server."""
    from afdc.cli.connect import ServerFlags

    return ServerFlags(server, config)


@remote_app.command()
@taking(_remote)
def submit(
    flags: Any,
    seeds: Annotated[
        Path | None, typer.Option(metavar="S.jsonl", help="Labelled examples: JSONL, CSV, or the id of a seed set.")
    ] = None,
    task: SeedsTask = None,
    eval_: Eval = None,
    unlabeled: Unlabeled = None,
    preset: PresetFlag = None,
    rounds: Rounds = None,
    augment_rounds: AugmentRounds = None,
    variants: Variants = None,
    threshold: Threshold = None,
    strategy: StrategyFlag = None,
    target_rows: TargetRows = None,
    seed: Seed = None,
    set_: Assignments = None,
    name: Annotated[str, typer.Option(metavar="TEXT", help="To tell the job from others.")] = "",
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The same key makes the same job once, however often it is sent.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on as `afdc watch`.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print plan and cost, and stop.")
    ] = False,
    json_: Json = False,
) -> None:
    """Upload seeds and start a job on the server; prints its id."""
    from afdc.cli.submit import Submission, submit_command

    paths = {"seeds": seeds, "task": task, "eval": eval_, "unlabeled": unlabeled}
    options = {
        "--preset": preset,
        "--rounds": rounds,
        "--augment-rounds": augment_rounds,
        "--variants": variants,
        "--threshold": threshold,
        "--strategy": strategy,
        "--target-rows": target_rows,
        "--seed": seed,
    }
    wanted = Submission(paths, options, tuple(set_ or ()), name, idempotency_key)
    submit_command(flags, wanted, watching=watch, dry_run=dry_run, as_json=json_)


@remote_app.command()
@taking(_remote)
def watch(flags: Any, job: JobId, json_: Json = False) -> None:
    """Follow a job to its end; Ctrl-C leaves it running."""
    from afdc.cli.watch import watch_command

    watch_command(flags, job, as_json=json_)


@remote_app.command()
@taking(_remote)
def jobs(
    flags: Any,
    job: Annotated[str | None, typer.Argument(metavar="JOB", help="Id of a job: show all of it.")] = None,
    status: Annotated[StatusName | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="The newest N.")] = 20,
    json_: Json = False,
) -> None:
    """List jobs, newest first, or show one."""
    from afdc.cli import jobs as commands

    if job is None:
        commands.list_command(flags, status, limit, as_json=json_)
    else:
        commands.show_command(flags, job, as_json=json_)


@remote_app.command()
@taking(_remote)
def pause(flags: Any, job: JobId, json_: Json = False) -> None:
    """Stop a job at the next place from which it can go on."""
    from afdc.cli.jobs import steer_command

    steer_command(flags, job, "pause", as_json=json_)


@remote_app.command()
@taking(_remote)
def resume(flags: Any, job: JobId, json_: Json = False) -> None:
    """Go on with a paused job."""
    from afdc.cli.jobs import steer_command

    steer_command(flags, job, "resume", as_json=json_)


@remote_app.command()
@taking(_remote)
def cancel(flags: Any, job: JobId, json_: Json = False) -> None:
    """Stop a job for good; its finished rounds are kept."""
    from afdc.cli.jobs import steer_command

    steer_command(flags, job, "cancel", as_json=json_)


@remote_app.command()
@taking(_remote)
def retry(
    flags: Any,
    job: JobId,
    reviews: Annotated[
        list[str] | None,
        typer.Option(metavar="DS", help="A data set whose reviews join the seeds: a new job; repeatable."),
    ] = None,
    json_: Json = False,
) -> None:
    """Go on with a job that failed, expired or was cancelled."""
    from afdc.cli.jobs import retry_command

    retry_command(flags, job, tuple(reviews or ()), as_json=json_)


@remote_app.command()
@taking(_remote)
def pull(
    flags: Any,
    job: Annotated[str, typer.Argument(metavar="JOB|DATASET", help="Id of a job, or of a data set alone.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to; default: a folder called as the job.")
    ] = None,
    adapter: Annotated[
        bool | None, typer.Option("--adapter/--no-adapter", help="With the adapter; default: where there is one.")
    ] = None,
    json_: Json = False,
) -> None:
    """Download data set and adapter of a job; after a cut it goes on."""
    from afdc.cli.transfer import pull_command

    pull_command(flags, job, out, adapter, as_json=json_)


@remote_app.command()
@taking(_remote)
def export(
    flags: Any,
    source: Annotated[str, typer.Argument(metavar="DATASET|JOB", help="Id of a data set, or of its job.")],
    format_: Annotated[FormatName, typer.Option("--format", help="What to make of it; hf: the whole folder as a zip.")],
    output: Annotated[str, typer.Option("--output", metavar="FILE", help='Where it goes; "-" is stdout.')],
    split: Annotated[
        SplitName, typer.Option(help="rejected: what was left out; not for training formats.")
    ] = "default",
    json_: Json = False,
) -> None:
    """Download a data set in another format."""
    from afdc.cli.transfer import export_command

    export_command(flags, source, format_, output, split=split, as_json=json_)


@remote_app.command()
@taking(_remote)
def review(
    flags: Any,
    source: Annotated[
        str, typer.Argument(metavar="DATASET|JOB", help="What was reviewed; of a job its newest version.")
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help='Label Studio\'s JSON export, or {"reviews": [...]}.')],
    json_: Json = False,
) -> None:
    """Send what people have said of rows: makes a new version of the data set."""
    from afdc.cli.transfer import review_command

    review_command(flags, source, file, as_json=json_)


@keys_app.command("list")
@taking(_remote)
def list_keys(flags: Any, json_: Json = False) -> None:
    """All keys, without their secrets."""
    from afdc.cli.keys import list_command

    list_command(flags, as_json=json_)


@keys_app.command("create")
@taking(_remote)
def create_key(
    flags: Any,
    name: Annotated[str, typer.Option(metavar="TEXT", help="To tell it from others.")] = "",
    scope: Annotated[
        list[str] | None, typer.Option(metavar="SCOPE", help="read, jobs or admin; repeatable; default: read and jobs.")
    ] = None,
    tenant: Annotated[
        str, typer.Option(metavar="NAME", help="Whose key it is; default: that of the key that asks.")
    ] = "",
    json_: Json = False,
) -> None:
    """Make a key and print it; it is shown this once."""
    from afdc.cli.keys import create_command

    create_command(flags, name, tuple(scope or ()), tenant, as_json=json_)


@keys_app.command("revoke")
@taking(_remote)
def revoke_key(
    flags: Any, key: Annotated[str, typer.Argument(metavar="KEY_ID", help="Id of the key.")], json_: Json = False
) -> None:
    """Make a key useless, from the next request on."""
    from afdc.cli.keys import revoke_command

    revoke_command(flags, key, as_json=json_)

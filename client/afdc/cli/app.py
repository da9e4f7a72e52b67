"""Commands and their flags. Each body imports what it needs when it runs, so that `--help` stays quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from afdc.cli.options import (
    AdapterFolder,
    Assignments,
    AugmentRounds,
    Config,
    Eval,
    Json,
    Model,
    PresetFlag,
    Rounds,
    Seed,
    SeedsTask,
    Server,
    StrategyFlag,
    TargetRows,
    TaskFile,
    Threshold,
    Unlabeled,
    Variants,
    taking,
)
from afdc.cli.remote_app import remote_app

app = typer.Typer(
    name="afdc",
    help="From a few labelled examples to an audited fine-tuning data set and the LoRA adapter trained on it.",
    epilog="Settings: flag > AFDC_* variable > ./afdc.toml > user config > default. AFDC_DEBUG=1 shows tracebacks.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: importing rich would double the time until it shows
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from afdc.version import afdc_version

        typer.echo(f"afdc {afdc_version()}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """From a few labelled examples to an audited fine-tuning data set and the LoRA adapter trained on it."""


@app.command()
def run(
    seeds: Annotated[Path | None, typer.Option(metavar="S.jsonl", help="Labelled examples: JSONL or CSV.")] = None,
    task: SeedsTask = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Output folder; an unfinished run in it is resumed.")
    ] = None,
    eval_: Eval = None,
    unlabeled: Unlabeled = None,
    preset: PresetFlag = None,
    model: Model = None,
    rounds: Rounds = None,
    augment_rounds: AugmentRounds = None,
    variants: Variants = None,
    threshold: Threshold = None,
    strategy: StrategyFlag = None,
    target_rows: TargetRows = None,
    seed: Seed = None,
    config: Config = None,
    set_: Assignments = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print plan and cost, and stop.")
    ] = False,
    json_: Json = False,
) -> None:
    """Construct a data set and an adapter from a few labelled examples."""
    from afdc.cli.run import RunFlags, run_command

    paths = {"seeds": seeds, "task": task, "out": out, "eval": eval_, "unlabeled": unlabeled}
    options = {
        "--preset": preset,
        "--model": model,
        "--rounds": rounds,
        "--augment-rounds": augment_rounds,
        "--variants": variants,
        "--threshold": threshold,
        "--strategy": strategy,
        "--target-rows": target_rows,
        "--seed": seed,
    }
    run_command(RunFlags(paths, options, config, tuple(set_ or ())), dry_run=dry_run, as_json=json_)


def _labeller(
    task: TaskFile = None,
    adapter: AdapterFolder = None,
    model: Model = None,
    config: Config = None,
    set_: Assignments = None,
) -> Any:
    """The LabellerFlags of the options that score, predict and eval share."""
    from afdc.cli.labelling import LabellerFlags

    return LabellerFlags(task, adapter, model, config, tuple(set_ or ()))


@app.command()
@taking(_labeller)
def score(
    flags: Any,
    source: Annotated[Path, typer.Option("--input", metavar="X.jsonl", help="Texts: JSONL, CSV or one a line.")],
    output: Annotated[Path, typer.Option("--output", metavar="Y.jsonl", help="Where the scores go.")],
    json_: Json = False,
) -> None:
    """Write the log-probabilities of all labels for the texts of a file."""
    from afdc.cli.labelling import score_command

    score_command(flags, source, output, as_json=json_)


@app.command()
@taking(_labeller)
def predict(
    flags: Any,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help='Texts to label; "-" reads lines from stdin.')],
    job: Annotated[
        str | None, typer.Option(metavar="JOB", help="Ask a server for the answers of this job's adapter.")
    ] = None,
    server: Server = None,
    json_: Json = False,
) -> None:
    """Label texts given on the command line, here or on a server."""
    from afdc.cli import labelling

    if job is None and server is None:
        labelling.predict_command(flags, texts, as_json=json_)
        return
    from afdc.cli.asking import predict_remotely

    predict_remotely(flags, job, server, texts, as_json=json_)


@app.command("eval")
@taking(_labeller)
def evaluate(
    flags: Any,
    source: Annotated[Path, typer.Option("--input", metavar="E.jsonl", help="Texts with gold labels: JSONL or CSV.")],
    json_: Json = False,
) -> None:
    """Measure accuracy, macro-F1 and calibration on gold labels."""
    from afdc.cli.labelling import eval_command

    eval_command(flags, source, as_json=json_)


@app.command()
def doctor(server: Server = None, config: Config = None, json_: Json = False) -> None:
    """Check packages, device, models, disk, and the server if there is one."""
    from afdc.cli.doctor import doctor_command

    doctor_command(server, config, as_json=json_)


app.add_typer(remote_app)

"""Commands and their flags. Each body imports what it needs when it runs, so that `--help` stays quick."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

# The two lists of afdc.config, repeated because pydantic must not be imported for --help; a test compares them.
PresetName = Literal["default", "paper"]
StrategyName = Literal["confidence", "least_confidence", "margin", "entropy", "committee", "diversity"]

app = typer.Typer(
    name="afdc",
    help="From a few labelled examples to an audited fine-tuning data set and the LoRA adapter trained on it.",
    epilog="Settings: flag > AFDC_* variable > ./afdc.toml > user config > default. AFDC_DEBUG=1 shows tracebacks.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: importing rich would double the time until it shows
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings file (TOML, YAML), read instead of ./afdc.toml."),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any other option; repeatable. See docs/configuration.md."),
]
TaskFile = Annotated[
    Path | None, typer.Option("--task", metavar="T.json", help="Instruction and labels; default: the adapter's.")
]
AdapterFolder = Annotated[
    Path | None, typer.Option("--adapter", metavar="DIR", help="An adapter folder, or the --out folder of a run.")
]
Model = Annotated[str | None, typer.Option("--model", metavar="M", help="Base model: a folder or a hub id.")]


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
    task: Annotated[
        Path | None, typer.Option(metavar="T.json", help="Instruction and labels; default: inferred from the seeds.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Output folder; an unfinished run in it is resumed.")
    ] = None,
    eval_: Annotated[
        Path | None, typer.Option("--eval", metavar="E.jsonl", help="Gold examples to measure on; never trained on.")
    ] = None,
    unlabeled: Annotated[
        Path | None, typer.Option(metavar="U.jsonl", help="Real texts without labels, added to the generated ones.")
    ] = None,
    preset: Annotated[PresetName | None, typer.Option(help="Set of defaults.")] = None,
    model: Model = None,
    rounds: Annotated[int | None, typer.Option(metavar="T", help="Self-training rounds.")] = None,
    augment_rounds: Annotated[int | None, typer.Option(metavar="R", help="Generation passes over the seeds.")] = None,
    variants: Annotated[int | None, typer.Option(metavar="K", help="Variants a seed and pass.")] = None,
    threshold: Annotated[float | None, typer.Option(metavar="TAU", help="Keep rows with confidence above it.")] = None,
    strategy: Annotated[StrategyName | None, typer.Option(help="Which scored rows are kept.")] = None,
    target_rows: Annotated[int | None, typer.Option(metavar="N", help="Make this many rows, and keep no more.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Fixes every random choice.")] = None,
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


def _takes_labeller(body: Callable[..., None]) -> Callable[..., None]:
    """A command whose first argument is made from the shared options, which --help shows before its --json."""
    shared = inspect.signature(_labeller, eval_str=True).parameters
    _, *own = inspect.signature(body, eval_str=True).parameters.values()

    @wraps(body)
    def command(**given: Any) -> None:
        flags = _labeller(**{name: given.pop(name) for name in shared})
        body(flags, **given)

    parameters = [*own[:-1], *shared.values(), own[-1]]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect reads it, mypy does not know it
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


@app.command()
@_takes_labeller
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
@_takes_labeller
def predict(
    flags: Any,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help='Texts to label; "-" reads lines from stdin.')],
    json_: Json = False,
) -> None:
    """Label texts given on the command line."""
    from afdc.cli.labelling import predict_command

    predict_command(flags, texts, as_json=json_)


@app.command("eval")
@_takes_labeller
def evaluate(
    flags: Any,
    source: Annotated[Path, typer.Option("--input", metavar="E.jsonl", help="Texts with gold labels: JSONL or CSV.")],
    json_: Json = False,
) -> None:
    """Measure accuracy, macro-F1 and calibration on gold labels."""
    from afdc.cli.labelling import eval_command

    eval_command(flags, source, as_json=json_)


@app.command()
def doctor(json_: Json = False) -> None:
    """Check Python, packages, device, model cache and disk."""
    from afdc.cli.doctor import doctor_command

    doctor_command(as_json=json_)

"""Flags that several commands share. Only typer is imported: `--help` reads this."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

# Lists of afdc.config and afdc.wire, repeated because pydantic must not be imported for --help; a test compares them.
PresetName = Literal["default", "paper"]
StrategyName = Literal["confidence", "least_confidence", "margin", "entropy", "committee", "diversity"]
StatusName = Literal[
    "queued",
    "running",
    "pausing",
    "paused",
    "finalizing",
    "succeeded",
    "failed",
    "cancelling",
    "cancelled",
    "expired",
]
SplitName = Literal["default", "rejected"]
FormatName = Literal["jsonl", "parquet", "csv", "hf", "messages", "prompt_completion", "alpaca", "labelstudio"]

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
SeedsTask = Annotated[
    Path | None,
    typer.Option("--task", metavar="T.json", help="Instruction and labels; default: inferred from the seeds."),
]
Eval = Annotated[
    Path | None, typer.Option("--eval", metavar="E.jsonl", help="Gold examples to measure on; never trained on.")
]
Unlabeled = Annotated[
    Path | None, typer.Option(metavar="U.jsonl", help="Real texts without labels, added to the generated ones.")
]
PresetFlag = Annotated[PresetName | None, typer.Option("--preset", help="Set of defaults.")]
Rounds = Annotated[int | None, typer.Option(metavar="T", help="Self-training rounds.")]
AugmentRounds = Annotated[int | None, typer.Option(metavar="R", help="Generation passes over the seeds.")]
Variants = Annotated[int | None, typer.Option(metavar="K", help="Variants a seed and pass.")]
Threshold = Annotated[float | None, typer.Option(metavar="TAU", help="Keep rows with confidence above it.")]
StrategyFlag = Annotated[StrategyName | None, typer.Option("--strategy", help="Which scored rows are kept.")]
TargetRows = Annotated[int | None, typer.Option(metavar="N", help="Make this many rows, and keep no more.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Fixes every random choice.")]
Server = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="URL", help="Address of the server; else AFDC_SERVER, or [server] of a settings file."
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job.")]


def taking(shared: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function: its first argument is what `shared` makes of the options that `shared` declares.

    --help shows them before the function's last own option, which is --json.
    """

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        declared = inspect.signature(shared, eval_str=True).parameters
        _, *own = inspect.signature(body, eval_str=True).parameters.values()

        @wraps(body)
        def command(**given: Any) -> None:
            made = shared(**{name: given.pop(name) for name in declared})
            body(made, **given)

        parameters = [*own[:-1], *declared.values(), own[-1]]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect reads it, mypy does not know it
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate

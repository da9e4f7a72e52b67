"""`afdc score`, `afdc predict` and `afdc eval`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from afdc.cli.output import data_console, load_server, message_console, print_json, to_json
from afdc.cli.progress import LiveProgress
from afdc.cli.summary import print_evaluation, print_prediction
from afdc.errors import UsageError
from afdc.inputs import check_text, iter_stream, read_task
from afdc.result import EvalReport
from afdc.settings import Layer, load_settings

T = TypeVar("T")


@dataclass(frozen=True)
class LabellerFlags:
    """Flags that say who labels."""

    task: Path | None
    adapter: Path | None
    model: str | None
    config: Path | None
    assignments: tuple[str, ...]

    def resolve(self, commands: Any) -> Any:
        """The `Labeller` of the server package; from the settings only model and engine matter here.

        Raises:
            UsageError, InputError: a setting or the task file is wrong.
        """
        given = {"model": self.model} if self.model is not None else {}
        settings = load_settings(Layer(given, lambda location: f"--{location[0]}"), self.assignments, self.config)
        # An adapter names its own base model: only a flag may override it.
        model = self.model if self.adapter else settings.config.model
        return commands.Labeller(
            task=read_task(self.task) if self.task else None,
            model=model or "",
            adapter=self.adapter,
            engine=settings.config.engine,
            logs=load_server("afdc_server.packaged").cache_root() / "logs",
        )


def score_command(flags: LabellerFlags, source: Path, output: Path, *, as_json: bool) -> None:
    """Body of `afdc score`."""
    commands = load_server("afdc_server.commands")
    labeller = flags.resolve(commands)
    with LiveProgress(message_console()) as progress:
        summary = _run(commands.score(labeller, source, output, progress))
    if as_json:
        print_json({"texts": summary.texts, "errors": summary.errors, "output": str(summary.output)})
    else:
        failed = f", {summary.errors} of them with an error" if summary.errors else ""
        message_console().print(f"{summary.texts:,} texts scored{failed}: {output}", soft_wrap=True)


def predict_command(flags: LabellerFlags, texts: Sequence[str], *, as_json: bool) -> None:
    """Body of `afdc predict` on this machine."""
    commands = load_server("afdc_server.commands")
    labeller = flags.resolve(commands)
    given = read_texts(texts)
    with LiveProgress(message_console()) as progress:
        records = _run(commands.predict(labeller, given, progress))
    print_records(records, as_json=as_json)


def print_records(records: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Predictions on stdout: bars on a terminal, tab-separated lines in a pipe, or JSON lines."""
    console = data_console()
    for record in records:
        if as_json:
            sys.stdout.write(to_json(record) + "\n")
        elif console.is_terminal:
            print_prediction(console, record)
        else:
            sys.stdout.write(_plain_line(record))


def eval_command(flags: LabellerFlags, source: Path, *, as_json: bool) -> None:
    """Body of `afdc eval`."""
    commands = load_server("afdc_server.commands")
    labeller = flags.resolve(commands)
    with LiveProgress(message_console()) as progress:
        report: EvalReport = _run(commands.evaluate(labeller, source, progress))
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        print_evaluation(data_console(), report)


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def read_texts(texts: Sequence[str]) -> list[str]:
    """The texts of the command line, then those of stdin; checked here, since an engine takes long to start.

    Raises:
        InputError: a text that cannot be used. UsageError: there is none.
    """
    places = enumerate(texts, start=1)
    given = [check_text(text, f"text {n} of the command line") for n, text in places if text != "-"]
    if "-" in texts:
        given += [text for _, text in iter_stream(sys.stdin.buffer, "<stdin>")]
    if not given:
        raise UsageError("no text to label", remedy='For example: afdc predict --adapter DIR "a text"')
    return given


def _plain_line(record: dict[str, Any]) -> str:
    if "error" in record:
        return f"\t\t{_one_line(record['text'])}\t{_one_line(record['error'])}\n"
    said = record["answer"] if "answer" in record else record["label"]
    return f"{_one_line(said)}\t{record['confidence']:.4f}\t{_one_line(record['text'])}\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())

"""What a person reads at the end of a run: how good, how many, where, and what to type next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from afdc.cli.output import duration, visible
from afdc.layout import RunLayout
from afdc.result import EvalReport, EvalSummary, Evaluation, RoundResult, RunResult, TokenF1
from afdc.wording import loss

BAR_WIDTH = 30
TOP_REASONS = 5
TOP_LABELS = 8
SHOWN_ANSWER = 2000  # characters


def print_result(console: Console, result: RunResult, out: Path) -> None:
    """The summary of a finished run."""
    took = duration(result.usage.wall_seconds)
    answers = f"{len(result.labels)} labels" if result.labels else "free answers"
    title = f"{result.job}: {result.model}, {answers}, {result.seeds} seeds, {took}"
    console.print()
    console.print(Text(visible(title), style="bold"))
    print_scores(console, result.eval)
    _print_rows(console, result)
    print_rounds(console, result.rounds, result.stop_reason)
    for one in result.advice:
        console.print(Text(f"\nNote: {visible(one, 600)}", style="yellow"))
    _print_places(console, result, RunLayout(out))


def print_scores(console: Console, scores: EvalSummary) -> None:
    """How good it is on gold, in bars; nothing where it was not measured."""
    if scores.token_f1 is None:
        _print_accuracy(console, "Accuracy", scores, scores.n)
    else:
        _print_accuracy(console, "Exact match", scores, scores.n)
        _print_accuracy(console, "Token F1", scores.token_f1, scores.n)


def print_rounds(console: Console, rounds: Sequence[RoundResult], stop_reason: str) -> None:
    """The table by round, and below it what the rounds have to say."""
    if rounds:
        console.print()
        console.print(round_table(rounds))
        for one in rounds:
            if one.note:
                console.print(Text(f"  round {one.round}: {visible(one.note, 300)}", style="dim"))
    if stop_reason:
        console.print(Text(f"  stopped: {visible(stop_reason)}", style="dim"))


def _print_accuracy(console: Console, metric: str, evaluation: EvalSummary | TokenF1, count: int) -> None:
    rows = [("base model", evaluation.base), ("seeds only", evaluation.seeds_only), ("final", evaluation.final)]
    if all(value is None for _, value in rows):
        return
    console.print(f"\n{metric} on {count} gold texts")
    for name, value in rows:
        if value is not None:
            gain = _gain(evaluation) if name == "final" else ""
            style = "bold green" if name == "final" else ""
            console.print(Text.assemble(f"  {name:<11}", (f"{value:7.1%}  ", style), (bar(value), "cyan"), gain))


def _gain(evaluation: EvalSummary | TokenF1) -> str:
    if evaluation.final is None or evaluation.seeds_only is None:
        return ""
    return f"  {100 * (evaluation.final - evaluation.seeds_only):+.1f} points over seeds only"


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """A share in 0..1 as a bar of at most `width` characters, to an eighth of a character."""
    if not 0 <= share <= 1:
        return ""
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _print_rows(console: Console, result: RunResult) -> None:
    if result.dataset is None:
        return
    candidates = result.rounds[-1].candidates if result.rounds else 0
    selected = result.rounds[-1].selected if result.rounds else 0
    console.print(
        f"\nRows: {result.dataset.rows:,} = {result.seeds:,} seeds + {selected:,} of {candidates:,} scored texts"
    )
    reasons = sorted(result.dropped.items(), key=lambda item: (-item[1], item[0]))[:TOP_REASONS]
    for name, count in reasons:
        console.print(Text(f"  {count:>7,}  {visible(name.replace('_', ' '))}", style="dim"))


def round_table(rounds: Sequence[RoundResult]) -> Table:
    """One line a round; columns without any value are left out. "log loss" is what the gate compares, on "held-out"."""
    columns = [
        ("round", [str(one.round) for one in rounds]),
        ("kept", [f"{one.selected:,}" for one in rounds]),
        ("flips", [_share(one.flip_rate) for one in rounds]),
        ("agreement", [_share(one.agreement) for one in rounds]),
        ("confidence", [_share(one.mean_confidence) for one in rounds]),
        ("held-out", [_accuracy(one.holdout) for one in rounds]),
        ("log loss", [loss(one.holdout) for one in rounds]),
        ("eval", [_accuracy(one.eval) for one in rounds]),
        ("time", [duration(sum(one.seconds.values())) for one in rounds]),
    ]
    shown = [(name, values) for name, values in columns if any(values)]
    table = Table(box=None, pad_edge=True, header_style="bold")
    for name, _ in shown:
        table.add_column(name, justify="right")
    for row in zip(*(values for _, values in shown), strict=True):
        table.add_row(*row)
    return table


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _accuracy(evaluation: Evaluation | None) -> str:
    return "" if evaluation is None else f"{evaluation.accuracy:.1%}"


def _print_places(console: Console, result: RunResult, layout: RunLayout) -> None:
    places = [("data set", layout.dataset), ("adapter", layout.adapter), ("report", layout.report)]
    places.append(("numbers", layout.result))
    console.print("\nWhere it lies")
    for name, path in places:
        if name != "adapter" or result.adapter:
            console.print(f"  {name:<9} {path}", soft_wrap=True)
    console.print("\nNext")
    if result.adapter:
        console.print(f'  afdc predict --adapter {layout.root} "a new text"', soft_wrap=True)
    load = f"from datasets import load_dataset; print(load_dataset('{layout.dataset}'))"
    console.print(f'  python -c "{load}"', soft_wrap=True)
    console.print(f"  open {layout.report}", soft_wrap=True)


def print_plan(console: Console, inputs: Mapping[str, Any], plan: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """The resolved settings, what was read, then what the run would do and cost."""
    console.print(Text("Settings", style="bold"))
    for key, value in flatten(config):
        console.print(f"  {key} = {value}", soft_wrap=True)
    console.print(Text("\nInputs", style="bold"))
    for name, value in inputs.items():
        shown = _counts(value) if isinstance(value, Mapping) else visible(str(value))
        if shown:
            console.print(Text(f"  {name.replace('_', ' '):<24} {shown}"), soft_wrap=True)
    print_cost(console, plan)


def print_cost(console: Console, plan: Mapping[str, Any]) -> None:
    """What a run would do, and how long it would take."""
    console.print(Text("\nPlan", style="bold"))
    for name, value in flatten({key: value for key, value in plan.items() if key != "seconds" and value != ""}):
        shown = f"{value:,.0f}" if isinstance(value, int | float) and not isinstance(value, bool) else value
        console.print(f"  {name.replace('_', ' '):<18} {shown:>14}")
    console.print(Text("\nTime (expect a factor of two either way)", style="bold"))
    for name, seconds in dict(plan.get("seconds", {})).items():
        console.print(f"  {name.replace('_', ' '):<18} {duration(seconds):>14}")


def _counts(values: Mapping[str, int]) -> str:
    """The range of the counts where there are many, else each of them."""
    if len(values) > TOP_LABELS:
        return f"{min(values.values())} to {max(values.values())}"
    return ", ".join(f"{visible(name, 40)} {count}" for name, count in values.items())


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        pairs += flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return pairs


def print_prediction(console: Console, record: Mapping[str, Any]) -> None:
    """A text and its label distribution, most probable first."""
    console.print(Text(visible(record["text"]), style="bold"))
    if "error" in record:
        console.print(Text(f"  cannot be scored: {visible(record['error'], 300)}", style="red"))
        return
    if "answer" in record:
        answer = visible(record["answer"], SHOWN_ANSWER)
        console.print(Text.assemble((f"  {answer}", "bold green"), f"  {record['confidence']:.1%}"))
        return
    ordered = sorted(record["probs"].items(), key=lambda item: -item[1])[:TOP_LABELS]
    widest = max(cell_len(visible(name, 40)) for name, _ in ordered)
    names = [set_cell_size(visible(name, 40), min(40, widest)) for name, _ in ordered]
    for place, (_, share) in enumerate(ordered):
        style = "bold green" if place == 0 else ""
        console.print(Text.assemble((f"  {names[place]} {share:7.1%} ", style), (bar(share), "cyan")))
    more = len(record["probs"]) - len(ordered)
    if more:
        console.print(Text(f"  and {more} more labels", style="dim"))


def print_evaluation(console: Console, report: EvalReport) -> None:
    """Numbers, then the table by label."""
    low, high = report.interval
    console.print(Text(f"{visible(report.model)} on {report.n} gold texts", style="bold"))
    name = "accuracy" if report.token_f1 is None else "exact match"
    console.print(f"  {name:<18} {report.accuracy:6.1%}   95 % interval {low:.1%} to {high:.1%}")
    others = (("token F1", report.token_f1), ("macro-F1", report.macro_f1), ("calibration error", report.ece))
    for name, value in others:
        if value is not None:
            console.print(f"  {name:<18} {value:6.1%}")
    if report.errors:
        console.print(Text(f"  {report.errors} texts could not be scored and count as wrong", style="red"))
    if not report.labels:
        return
    table = Table(box=None, header_style="bold")
    for name in ("label", "precision", "recall", "F1", "gold", "predicted"):
        table.add_column(name, justify="left" if name == "label" else "right")
    for one in report.labels:
        shares = (f"{value:.1%}" for value in (one.precision, one.recall, one.f1))
        table.add_row(visible(one.name, 40), *shares, str(one.support), str(one.predicted))
    console.print(table)

"""Accuracy and data quality of every method, on folders with task.json, train.jsonl and test.jsonl.

    python -m benchmarks.quality --task DIR... [--shots 8] [--draws 3] [--methods NAME...] [--jobs N] [--out F.json]
    python -m benchmarks.quality ablate --task DIR... [--only SWITCH...] [--variant NAME:section.key=value,...]
    python -m benchmarks.quality table F.json... [--docs docs/quality.md]

Every result is a file under --work and is read when it is there: the same command goes on where it was stopped.
docs/quality.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afdc.errors import AfdcError, UsageError
from afdc.files import write_json
from afdc.presets import merge_nested
from benchmarks.quality.bench import ENGINES, JUDGES, TRAINERS, Options
from benchmarks.quality.methods import METHODS
from benchmarks.quality.runner import Cell, is_earlier, run_cells
from benchmarks.quality.summary import ablation, summarise
from benchmarks.quality.switches import default_switches, parse_overrides, parse_variant
from benchmarks.quality.table import ablation_table, goals_table, replace_between, results_table
from benchmarks.quality.tasks import DrawSpec

Record = dict[str, Any]
COMMANDS = ("run", "ablate", "table")


def make_parser() -> argparse.ArgumentParser:
    """The three commands; `run` may be left out."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="benchmarks.quality", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="methods side by side (the command when none is named)")
    run.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    ablate = commands.add_parser("ablate", help="each switch of the default preset off, one at a time")
    switches = default_switches()
    only = f"none or some of {', '.join(switches)}"
    ablate.add_argument("--only", nargs="*", choices=list(switches), metavar="SWITCH", help=only)
    ablate.add_argument("--variant", action="append", default=[], metavar="NAME:SETTINGS", help="a setting more to try")
    ablate.add_argument("--method", choices=["default", "unlabeled"], default="default", help="what is taken apart")
    for command in (run, ablate):
        _add_sweep_options(command)
    table = commands.add_parser("table", help="the tables of finished sweeps, printed or put into a document")
    table.add_argument("files", type=Path, nargs="+")
    table.add_argument("--docs", type=Path, help="a file with the markers `goals`, `results` and `ablation`")
    return parser


def _add_sweep_options(parser: argparse.ArgumentParser) -> None:
    defaults = Options(Path())
    add = parser.add_argument
    add("--task", type=Path, nargs="+", required=True, metavar="DIR")
    add("--shots", type=int, default=8, help="seeds a label")
    add("--draws", type=int, default=3, help="draws of seeds")
    add("--first", type=int, default=0, help="number of the first draw")
    add("--set", default="", metavar="SETTINGS", help="section.key=value,... for the methods of AFDC")
    add("--gold", type=int, default=600, help="gold labels of the upper mark")
    add("--unlabeled", type=int, default=2000, help="real texts for the method `unlabeled`")
    add("--test-limit", type=int, default=0, help="test texts; 0: all")
    add("--jobs", type=int, default=1, help="processes, each with an engine of its own")
    add("--out", type=Path, help="JSON with all results; a plot goes beside it, with --plot")
    add("--plot", choices=["svg", "html"], help="draw accuracies beside --out")
    add("--work", type=Path, default=Path("runs/quality"), help="caches, results and run folders")
    add("--any-code", action="store_true", help="read results that were made by an earlier version of the code, too")
    add("--keep", action="store_true", help="keep the run folders of finished methods")
    add("--model", default=defaults.model, help="base model, as for `afdc run`")
    add("--device", choices=["auto", "cpu", "cuda"], default=defaults.device)
    add("--engine", choices=ENGINES, default=defaults.engine, help="plain transformers, or the product's own")
    add("--trainer", choices=TRAINERS, default=defaults.trainer, help="a process a fit, or inside the worker")
    add("--judge", choices=JUDGES, default=defaults.judge, help="who labels generated texts")
    add("--judge-rows", type=int, default=defaults.judge_rows, help="gold rows the judge learns from; 0: all")
    add("--judge-epochs", type=int, default=defaults.judge_epochs)
    add("--gold-epochs", type=int, default=defaults.gold_epochs, help="epochs of the upper mark")
    add("--members", type=int, default=defaults.members, help="training seeds of seeds-only and augmentation")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Arguments of a command; without one it is `run`."""
    named = arguments and arguments[0] in (*COMMANDS, "-h", "--help")
    return make_parser().parse_args(list(arguments) if named else ["run", *arguments])


def make_options(args: argparse.Namespace) -> Options:
    """How to compute, from the command line."""
    names = Options.__dataclass_fields__
    return Options(**{**{name: getattr(args, name) for name in names}, "work": args.work.resolve()})


def run_plan(args: argparse.Namespace) -> list[Cell]:
    """Every method on every draw of every task; what others share comes first."""
    settings = _settings(args)
    return [
        Cell(task, spec, method, settings if METHODS[method].loop else {})
        for task in args.task
        for spec in _specs(args)
        for method in sorted(args.methods, key=list(METHODS).index)
    ]


def ablation_plan(args: argparse.Namespace) -> list[Cell]:
    """The whole default, then each variant, on every draw of every task; --set lies beneath them all."""
    base, switches = _settings(args), default_switches()
    chosen = switches if args.only is None else {name: switches[name] for name in args.only}
    variants = {"": {}, **chosen, **dict(parse_variant(text) for text in args.variant)}
    return [
        Cell(task, spec, args.method, merge_nested(base, settings), name)
        for task in args.task
        for spec in _specs(args)
        for name, settings in variants.items()
    ]


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    return parse_overrides(args.set) if args.set else {}


def _specs(args: argparse.Namespace) -> list[DrawSpec]:
    draws = range(args.first, args.first + args.draws)
    return [DrawSpec(args.shots, draw, args.gold, args.unlabeled, args.test_limit) for draw in draws]


def sweep(args: argparse.Namespace, cells: Sequence[Cell]) -> list[Record]:
    """Compute what is missing, telling each result as it comes, and return all of them in the order of the plan."""
    found: list[Record] = []
    for record in run_cells(cells, make_options(args), args.jobs, any_code=args.any_code):
        name = f"{record['method']}{' without ' + record['variant'] if record['variant'] else ''}"
        told = f"{record['task']} draw {record['draw']} {name}: {record['accuracy']:.3f} ({record['seconds']:.0f} s)"
        print(f"[{len(found) + 1}/{len(cells)}] {told}", file=sys.stderr, flush=True)
        found.append(record)
    place = {_identity(c.task.resolve().name, c.spec.draw, c.method, c.variant): i for i, c in enumerate(cells)}
    found.sort(key=lambda r: place[_identity(r["task"], r["draw"], r["method"], r["variant"])])
    return found


def _identity(task: str, draw: int, method: str, variant: str) -> tuple[str, int, str, str]:
    return (task, draw, method, variant)


def command_run(args: argparse.Namespace) -> int:
    """`run`: the table of methods."""
    cells = run_plan(args)
    records = sweep(args, cells)
    print(results_table(summarise(records)))
    return _finish(args, records, cells)


def command_ablate(args: argparse.Namespace) -> int:
    """`ablate`: the table of switches."""
    cells = ablation_plan(args)
    records = sweep(args, cells)
    print(ablation_table(ablation(records)))
    return _finish(args, records, cells)


def _finish(args: argparse.Namespace, records: Sequence[Record], cells: Sequence[Cell]) -> int:
    if args.out:
        command = " ".join(shown_arguments(sys.argv[1:]))
        write_json(args.out, {"kind": args.command, "command": command, "records": list(records)})
    if args.plot and args.out:
        from benchmarks.quality.plot import write_plot

        write_plot(records, args.out.with_suffix(f".{args.plot}"))
    return 0 if len(records) == len(cells) else 1


def shown_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments with absolute paths cut to their last name, for documents that others read."""
    return [Path(one).name if one.startswith("/") else one for one in arguments]


def command_table(args: argparse.Namespace) -> int:
    """`table`: several sweeps together, with the commands that made them."""
    sweeps = [json.loads(path.read_bytes()) for path in args.files]
    tables: dict[str, str] = {}
    for kind in ("run", "ablate"):
        chosen = [one for one in sweeps if one["kind"] == kind]
        made = "\n".join(f"    python -m benchmarks.quality {one['command']}" for one in chosen)
        records = _joined(chosen)
        if records and kind == "run":
            lines = summarise(records)
            tables |= {"goals": goals_table(lines), "results": f"{made}\n\n{results_table(lines)}"}
        elif records:
            tables["ablation"] = f"{made}\n\n{ablation_table(ablation(records))}"
    if args.docs:
        replace_between(args.docs, tables)
    else:
        print("\n\n".join(tables.values()))
    return 0


def _joined(sweeps: Sequence[Record]) -> list[Record]:
    """All records, each told from one of today's code.

    Raises:
        UsageError: two sweeps have the same cell with other settings.
    """
    found: dict[tuple[str, int, str, str], Record] = {}
    for record in (record for sweep in sweeps for record in sweep["records"]):
        place = _identity(record["task"], record["draw"], record["method"], record["variant"])
        if found.setdefault(place, record)["overrides"] != record["overrides"]:
            raise UsageError(
                f"{record['task']} draw {record['draw']} {record['method']} is there with different settings: "
                f"{found[place]['overrides']} and {record['overrides']}",
                remedy="Make a table of each sweep by itself",
            )
    return [{**record, "earlier": is_earlier(record)} for record in found.values()]


def main(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code."""
    args = parse(arguments)
    commands = {"run": command_run, "ablate": command_ablate, "table": command_table}
    try:
        return commands[args.command](args)
    except AfdcError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

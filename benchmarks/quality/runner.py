"""Cells of a sweep (task x draw x method x settings): each is computed once and kept as a file."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from afdc.config import RunConfig
from afdc.files import write_json
from afdc.presets import build_config
from afdc_server.models import detect_device, resolve_model
from afdc_trainer.process import end_with
from benchmarks.quality.bench import Bench, Case, Options, baseline_code, loop_code, trainer_code
from benchmarks.quality.cache import digest
from benchmarks.quality.methods import METHODS
from benchmarks.quality.tasks import DrawSpec, TaskFolder, draw_rows, read_folder

Record = dict[str, Any]

KEPT = Path(__file__).with_name("results")
"""Finished cells that the repository carries, by task: a sweep of hours goes on on another machine."""


@dataclass(frozen=True)
class Cell:
    """One result. `overrides` are settings on top of the method's preset; `variant` is their name ("" for none)."""

    task: Path
    spec: DrawSpec
    method: str
    overrides: dict[str, Any] = field(default_factory=dict, hash=False)
    variant: str = ""

    def config(self) -> RunConfig:
        """The settings of this cell; the draw's number seeds them."""
        return build_config(METHODS[self.method].preset, self.overrides, {"seed": self.spec.draw})

    def title(self) -> str:
        return f"{self.task.name} draw {self.spec.draw} {self.method}{' ' + self.variant if self.variant else ''}"


OF_ROUNDS = {"train": {"all_rows"}}  # settings that a method without rounds does not read


def record_path(cell: Cell, options: Options) -> Path:
    """Where a cell's result lies: named by the hash of all that it depends on, but for the code."""
    folder = options.work / "results" / cell.task.resolve().name
    return folder / f"{cell.spec.draw}-{cell.method}-{_key(cell, options)[:16]}.json"


def _key(cell: Cell, options: Options) -> str:
    method = METHODS[cell.method]
    config = cell.config().model_dump(mode="json", exclude=None if method.loop else OF_ROUNDS)
    settings: Any = config if method.loop else (config["train"] if method.trains else {})
    judging = [options.judge, options.judge_rows, options.judge_epochs] if method.loop else []
    training = [options.members, options.gold_epochs] if method.trains or method.loop else []
    device = detect_device(options.device)
    engine = [options.engine, device, _model_revision(options.model, device)]
    unread = {"gold", "unlabeled"} - {cell.method}
    spec = {name: value for name, value in asdict(cell.spec).items() if name not in unread}
    return digest([_folder(cell.task).digest, spec, cell.method, settings, judging, training, engine])


def code_of(method: str) -> str:
    """Digest of the code that a method's results depend on: the loop's, the trainer's, or the baseline's own."""
    return _code("loop" if METHODS[method].loop else "train" if METHODS[method].trains else "baseline")


@lru_cache
def _code(kind: str) -> str:
    return {"loop": loop_code, "train": trainer_code, "baseline": baseline_code}[kind]()


@lru_cache
def _model_revision(name: str, device: Any) -> str:
    return resolve_model(name, device).revision


@lru_cache
def _folder(path: Path) -> TaskFolder:
    return read_folder(path)


def is_earlier(record: Record) -> bool:
    """Whether it was made with other code than today's."""
    return bool(record["code"] != code_of(record["method"]))


def stored(cell: Cell, options: Options, *, any_code: bool = False) -> Record | None:
    """The finished result of a cell, here or in the repository, unless code that it depends on has changed since."""
    path = record_path(cell, options)
    for place in (path, KEPT / path.parent.name / path.name):
        record: Record | None = json.loads(place.read_bytes()) if place.exists() else None
        if record and (any_code or not is_earlier(record)):
            return record
    return None


async def compute(bench: Bench, cell: Cell) -> Record:
    """Run a cell and keep its result."""
    path, code = record_path(cell, bench.options), code_of(cell.method)
    folder = bench.options.work / "runs" / path.parent.name / f"{path.stem}-{code[:8]}"
    task = _folder(cell.task)
    case = Case(task, cell.spec, draw_rows(task, cell.spec), cell.config(), folder)
    folder.mkdir(parents=True, exist_ok=True)
    started, measured, spent = bench.clock(), bench.measuring_seconds, _Spent(folder / "spent.json")
    try:
        outcome = await METHODS[cell.method].run(bench, case)
    finally:  # an attempt that fails has spent its seconds, too: the next one goes on behind it
        spent.add(bench.clock() - started - (bench.measuring_seconds - measured))
    record = {
        "task": task.name,
        "method": cell.method,
        "variant": cell.variant,
        **asdict(cell.spec),
        "tests": len(case.drawn.test),
        "overrides": cell.overrides,
        "accuracy": outcome.accuracy,
        "macro_f1": outcome.macro_f1,
        "ece": outcome.ece,
        "seconds": spent.seconds,
        "engine": [bench.options.engine, bench.info.version, bench.info.device, bench.info.dtype],
        "model": bench.info.model,
        "code": code,
        **outcome.facts,
    }
    write_json(path, record)
    if not bench.options.keep:
        shutil.rmtree(folder)
    return record


class _Spent:
    """Seconds of all attempts at a cell, kept beside its run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: float = json.loads(path.read_bytes()) if path.exists() else 0.0

    def add(self, seconds: float) -> None:
        self.seconds += seconds
        write_json(self._path, self.seconds)


class _Worker:
    """What a worker process holds: an event loop and the bench, made by its first cell."""

    runner: asyncio.Runner
    options: Options
    bench: Bench | None = None


def _set_up(options: Options, parent: int) -> None:
    end_with(parent)  # a sweep that is killed leaves no worker behind that nobody reads
    _Worker.runner, _Worker.options = asyncio.Runner(), options


def _work(cell: Cell) -> Record:
    if _Worker.bench is None:
        _Worker.bench = _Worker.runner.run(Bench.open(_Worker.options))
    return _Worker.runner.run(compute(_Worker.bench, cell))


def prepare_environment(jobs: int) -> None:
    """What the workers inherit: the libraries that make torch faster on a CPU, and their share of its cores."""
    from afdc.training import PARENT_VARIABLE
    from afdc_server.child import trainer_environment

    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // jobs)))
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' progress bars would run through each other
    os.environ.update(trainer_environment())
    os.environ.pop(PARENT_VARIABLE, None)


def worker_pool(jobs: int, options: Options) -> ProcessPoolExecutor:
    """Processes that compute cells and end with this one, however it ends."""
    prepare_environment(jobs)
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _set_up, (options, os.getpid()))


def run_cells(cells: Sequence[Cell], options: Options, jobs: int, *, any_code: bool = False) -> Iterator[Record]:
    """Results in the order in which they are had; those that are kept come first.

    A cell that fails is told on stderr, and the others go on.
    """
    missing = []
    for cell in cells:
        record = stored(cell, options, any_code=any_code)
        if record is None:
            missing.append(cell)
        else:
            yield {**record, "variant": cell.variant, "earlier": is_earlier(record)}
    if not missing:
        return
    with worker_pool(min(jobs, len(missing)), options) as pool:
        waiting: dict[Future[Record], Cell] = {pool.submit(_work, cell): cell for cell in missing}
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                cell = waiting.pop(future)
                error = future.exception()
                if error is not None:
                    print(f"{cell.title()} failed: {type(error).__name__}: {error}", file=sys.stderr)
                    continue
                yield future.result()

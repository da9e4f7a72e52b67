"""What `afdc run` was asked to do, and the checks that need no engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from afdc.config import RunConfig
from afdc.errors import InputError, UsageError
from afdc.files import sha256_file
from afdc.inputs import ReadExample, iter_texts, read_examples, read_task
from afdc.seeds import check_seeds, first_of_each, infer_task
from afdc.task import Example, Task, normalise_text, text_id
from afdc_pipeline import holdout
from afdc_pipeline.context import JobInputs
from afdc_pipeline.rows import Seed
from afdc_pipeline.seams import DuplicateHit
from afdc_server.duplicates import SqliteDuplicateIndex
from afdc_server.remote.server import server_root

SHOWN_LEAKS = 20


@dataclass(frozen=True)
class RunRequest:
    """The command line of `afdc run`, parsed."""

    seeds: Path
    out: Path
    config: RunConfig
    task: Path | None = None
    eval: Path | None = None
    unlabeled: Path | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class CheckedRequest:
    """A request whose files were read and found good."""

    task: Task
    seeds: tuple[Seed, ...]
    eval: tuple[Example, ...]
    unlabeled: Path | None
    digests: dict[str, str]
    duplicates: int

    def job_inputs(self, job: str) -> JobInputs:
        """The inputs as the loop takes them."""
        return JobInputs(
            job=job,
            task=self.task,
            seeds=self.seeds,
            eval=self.eval,
            unlabeled=self._stream if self.unlabeled else None,
            unlabeled_digest=self.digests.get("unlabeled", ""),
        )

    def _stream(self) -> Iterator[str]:
        if self.unlabeled is not None:
            yield from (text for _, text in iter_texts(self.unlabeled))


def check_request(request: RunRequest) -> CheckedRequest:
    """Read every file and check it.

    Raises:
        UsageError: settings that cannot work together.
        InputError: with file, line and remedy.
    """
    check_settings(request.config)
    task = read_task(request.task) if request.task else None
    read = read_examples(request.seeds, task)
    task = task or infer_task(read)
    if task.is_open:
        check_open_settings(request.config)
    report = check_seeds(read, task)
    gold = read_examples(request.eval, task) if request.eval else []
    if gold:
        first_of_each(gold, task)  # raises where a text has two labels; repeats with one label stay
        check_leaks(report.examples, gold, request.seeds, request.config.augment.near_duplicate)
    if request.unlabeled is not None:
        _check_texts(request.unlabeled)
    files = {"seeds": request.seeds, "eval": request.eval, "unlabeled": request.unlabeled}
    return CheckedRequest(
        task=task,
        seeds=_with_holdout(report.examples, request.config, is_open=task.is_open),
        eval=tuple(Example(id=text_id("e_", e.text), text=normalise_text(e.text), label=e.label) for e in gold),
        unlabeled=request.unlabeled,
        digests={name: sha256_file(path) for name, path in files.items() if path is not None},
        duplicates=report.duplicates,
    )


def check_settings(config: RunConfig) -> None:
    """Refuse settings that are good each by itself and do nothing together.

    Raises:
        UsageError: a committee of one, whose members never disagree; doubtful rows with sure labels; an engine's URL
            that is none.
    """
    if config.engine.url:
        server_root(config.engine.url)
    loop = config.loop
    is_alone = loop.members <= 1 or (loop.rounds > 0 and not loop.ensemble)
    if config.select.strategy == "committee" and is_alone:
        raise UsageError(
            "select.strategy committee compares labellers, and with these settings a round has only one",
            remedy="Set loop.members to 2 or more and loop.ensemble to true, or choose another strategy",
        )
    if config.train.all_rows and not config.select.soft_targets:
        raise UsageError(
            "train.all_rows learns from doubtful rows, too, and needs select.soft_targets to learn their doubt",
            remedy="Switch select.soft_targets on, or train.all_rows off",
        )


def check_open_settings(config: RunConfig) -> None:
    """Refuse settings that need labels.

    Raises:
        UsageError: names the first of them.
    """
    chosen = config.select
    needing = {
        "per_label": chosen.per_label is not None,
        "combine": chosen.combine,
    }
    found = next((name for name, is_set in needing.items() if is_set), None)
    if found:
        raise UsageError(
            f"select.{found} needs labels, and the task has none",
            remedy="Take the setting out, or list the labels in the task file",
        )


def check_leaks(seeds: Sequence[Example], gold: Sequence[ReadExample], path: Path, threshold: float) -> None:
    """Refuse --eval texts that repeat a seed: the accuracy would be that of texts already seen in training.

    Args:
        path: of the seeds, for the message.
        threshold: similarity at which two texts count as one (`augment.near_duplicate`).

    Raises:
        InputError: naming the first lines of the --eval file that do.
    """
    with TemporaryDirectory(prefix="afdc-") as folder:
        index = SqliteDuplicateIndex(Path(folder) / "seeds.db", threshold)
        for seed in seeds:
            index.add(seed.text, seed.text)
        hits = ((example, index.find(example.text)) for example in gold)
        leaks = list(islice(((example, hit) for example, hit in hits if hit), SHOWN_LEAKS))
        index.close()
    if leaks:
        others = "".join(f"\n  line {example.line}: {_tell_leak(example, hit)}" for example, hit in leaks[1:])
        first, hit = leaks[0]
        raise InputError(
            f"this --eval text repeats a seed in {path}: {_tell_leak(first, hit)}{others}",
            path=first.path,
            line=first.line,
            remedy="Take it out of one of the two files: accuracy on texts seen in training says nothing",
        )


def _tell_leak(example: ReadExample, hit: DuplicateHit) -> str:
    nearly = "" if hit.kind == "exact" else f" is nearly {hit.id[:60]!r}"
    return f"{example.text[:60]!r}{nearly}"


def _check_texts(path: Path) -> None:
    for _ in iter_texts(path):
        pass  # reading is the check: it raises at the first line that cannot be used


def _with_holdout(examples: Sequence[Example], config: RunConfig, *, is_open: bool) -> tuple[Seed, ...]:
    seeds = [Seed(id=e.id, text=e.text, label=e.label or "") for e in examples]
    return holdout.split(seeds, config.loop.holdout, config.seed, by_label=not is_open)

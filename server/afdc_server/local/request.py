"""What `afdc run` was asked to do, and the checks that need no engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from afdc.config import RunConfig
from afdc.errors import InputError
from afdc.files import sha256_file
from afdc.inputs import ReadExample, iter_texts, read_examples, read_task
from afdc.seeds import check_seeds, infer_task
from afdc.task import Example, Task, normalise_text, text_id
from afdc_pipeline import holdout
from afdc_pipeline.context import JobInputs
from afdc_pipeline.rows import Seed


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
        InputError: with file, line and remedy.
    """
    task = read_task(request.task) if request.task else None
    read = read_examples(request.seeds, task)
    task = task or infer_task(read)
    report = check_seeds(read, task)
    gold = read_examples(request.eval, task) if request.eval else []
    check_leaks(report.examples, gold, request.seeds)
    if request.unlabeled is not None:
        _check_texts(request.unlabeled)
    files = {"seeds": request.seeds, "eval": request.eval, "unlabeled": request.unlabeled}
    return CheckedRequest(
        task=task,
        seeds=_with_holdout(report.examples, request.config),
        eval=tuple(Example(id=text_id("e_", e.text), text=normalise_text(e.text), label=e.label) for e in gold),
        unlabeled=request.unlabeled,
        digests={name: sha256_file(path) for name, path in files.items() if path is not None},
        duplicates=report.duplicates,
    )


def check_leaks(seeds: Sequence[Example], gold: Sequence[ReadExample], path: Path) -> None:
    """Refuse --eval texts that are also seeds: the accuracy would be that of texts already seen in training.

    Raises:
        InputError: naming the line of the --eval file.
    """
    known = {_key(seed.text) for seed in seeds}
    for example in gold:
        if _key(example.text) in known:
            raise InputError(
                f"this --eval text is also a seed in {path}: {example.text[:60]!r}",
                path=example.path,
                line=example.line,
                remedy="Take it out of one of the two files: accuracy on texts seen in training says nothing",
            )


def _check_texts(path: Path) -> None:
    for _ in iter_texts(path):
        pass  # reading is the check: it raises at the first line that cannot be used


def _key(text: str) -> str:
    return " ".join(normalise_text(text).casefold().split())


def _with_holdout(examples: Sequence[Example], config: RunConfig) -> tuple[Seed, ...]:
    seeds = [Seed(id=e.id, text=e.text, label=e.label or "") for e in examples]
    return holdout.split(seeds, config.loop.holdout, config.seed)

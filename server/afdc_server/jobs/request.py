"""What a client asks a job to be, checked before anything is stored or spent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection

from afdc.config import RunConfig
from afdc.engine_config import EngineConfig
from afdc.errors import InputError, ModelError
from afdc.files import write_json
from afdc.presets import build_config
from afdc.task import Example, Task, first_fault, text_key
from afdc.wire.common import Fault
from afdc.wire.jobs import JobCreate
from afdc.wire.seeds import SeedExample, SeedSet
from afdc_server.api.problems import RequestError
from afdc_server.artifacts import ArtifactStore
from afdc_server.datasets.reviewed import reviewed_examples
from afdc_server.local.request import CheckedRequest, RunRequest, check_open_settings, check_request, check_settings
from afdc_server.seeds.store import get_set, read_rows, write_examples
from afdc_server.service.settings import OPERATORS, Limits, without_address

SEEDS_FILE, TASK_FILE, EVAL_FILE, TEXTS_FILE = "seeds.jsonl", "task.json", "eval.jsonl", "texts.jsonl"


@dataclass(frozen=True)
class JobInputs:
    """The sets that a job names, found and fitting together. `reviewed`: gold rows of reviews."""

    seeds: SeedSet
    gold: SeedSet | None
    texts: SeedSet | None
    reviewed: tuple[Example, ...] = ()

    @property
    def task(self) -> Task:
        assert self.seeds.task is not None  # noqa: S101 - a set of kind seeds has a task
        return self.seeds.task


def find_inputs(connection: Connection, tenant: str, wanted: JobCreate) -> JobInputs:
    """Look up every set that the request names.

    Raises:
        NotFoundError: one of them is not there, or of another kind.
        RequestError: gold of another task, or no reviewed row where data sets with reviews are named.
    """
    seeds = get_set(connection, tenant, wanted.seeds, "seeds")
    gold = get_set(connection, tenant, wanted.eval, "gold") if wanted.eval else None
    texts = get_set(connection, tenant, wanted.unlabeled, "unlabeled") if wanted.unlabeled else None
    reviewed = tuple(reviewed_examples(connection, tenant, wanted.reviews)) if wanted.reviews else ()
    inputs = JobInputs(seeds, gold, texts, reviewed)
    if gold is not None and gold.task is not None:
        _check_labels("/eval", {name for name, n in gold.report.per_label.items() if n}, inputs.task)
    if wanted.reviews and not reviewed:
        message = "nobody has accepted or relabelled a row of these data sets: name the version that a review made"
        raise RequestError(message, [Fault(pointer="/reviews", code="no_reviews", message=message)])
    _check_labels("/reviews", {str(example.label) for example in reviewed}, inputs.task)
    return inputs


def _check_labels(pointer: str, labels: set[str], task: Task) -> None:
    foreign = sorted(labels - set(task.names)) if not task.is_open else []
    if foreign:
        message = f"labels that the seeds' task does not have: {', '.join(foreign[:5])}"
        raise RequestError(message, [Fault(pointer=pointer, code="unknown_label", message=message)])


def resolve_config(wanted: JobCreate, model: str, engine: EngineConfig, defaults: dict[str, Any]) -> RunConfig:
    """Every setting of the job: preset, the operator's `defaults`, the request's, and the operator's model and engine,
    but for where the engine is.

    Raises:
        RequestError: an unknown key, a value out of range, or one that only the operator sets.
        ModelError: another model than the one that is served. UsageError: settings that do nothing together.
    """
    taken = next((key for key in OPERATORS if key in wanted.settings), None)
    if taken is not None:
        raise _setting_error((taken,), "operator_setting", f"{taken} is set by the server's operator")
    if wanted.model and wanted.model != model:
        raise ModelError(
            f"the model {wanted.model[:200]!r} is not served here", remedy=f"Leave it out, or name {model}"
        )
    try:
        operator = without_address({"model": model, "engine": engine.model_dump()})
        config = build_config(wanted.preset, defaults, wanted.settings, operator)
    except ValidationError as exc:
        where, kind, message = first_fault(exc)
        raise _setting_error(where.split("."), kind, message) from exc
    if config.encoder.model != build_config(wanted.preset, defaults).encoder.model:
        raise _setting_error(("encoder", "model"), "operator_setting", "encoder.model is set by the server's operator")
    if config.train.rank > config.engine.max_lora_rank:
        limit = config.engine.max_lora_rank
        raise _setting_error(("train", "rank"), "too_large", f"the engine takes adapters of rank {limit} at most")
    check_settings(config)
    return config


def _setting_error(path: Iterable[str], code: str, message: str) -> RequestError:
    pointer = "/settings/" + "/".join(path)
    return RequestError(f"{pointer}: {message}", [Fault(pointer=pointer, code=code, message=message)])


def check_fit(inputs: JobInputs, config: RunConfig, limits: Limits) -> None:
    """Whether the settings suit these seeds, and stay below the server's limits.

    Raises:
        UsageError: a setting that needs labels, in an open task. RequestError: more texts than a job may generate.
    """
    if inputs.task.is_open:
        check_open_settings(config)
    seeds = inputs.seeds.report.rows
    draws = seeds * config.augment.variants_of(seeds) * config.augment.rounds
    wanted = max(draws, config.select.target_rows or 0)
    if wanted > limits.draws:
        raise _setting_error(
            ("augment", "variants"), "too_large", f"{wanted:,} texts to generate, and {limits.draws:,} are allowed"
        )


def write_inputs(folder: Path, inputs: JobInputs, artifacts: ArtifactStore, config: RunConfig) -> RunRequest:
    """Put the sets into a job's folder as `afdc run` reads them. Doing it again writes the same."""
    task, seeds = folder / TASK_FILE, folder / SEEDS_FILE
    write_json(task, inputs.task.model_dump(mode="json"))
    write_examples(seeds, _seed_rows(inputs, artifacts))
    gold, texts = folder / EVAL_FILE, folder / TEXTS_FILE
    has_gold = inputs.gold is not None or inputs.seeds.report.holdout_rows > 0
    if has_gold:
        write_examples(gold, _gold_rows(inputs, artifacts))
    if inputs.texts is not None:
        write_examples(texts, read_rows(artifacts, inputs.texts.id), labelled=False)
    return RunRequest(
        seeds=seeds,
        out=folder.parent,
        config=config,
        task=task,
        eval=gold if has_gold else None,
        unlabeled=texts if inputs.texts is not None else None,
    )


def _seed_rows(inputs: JobInputs, artifacts: ArtifactStore) -> Iterator[SeedExample]:
    """The seeds, then the reviewed rows. A person's later word on the same text is the one that counts."""
    reviewed = {text_key(example.text): example for example in inputs.reviewed}
    for row in read_rows(artifacts, inputs.seeds.id):
        if not row.holdout and text_key(row.text) not in reviewed:
            yield row
    for example in reviewed.values():
        yield SeedExample(id=example.id, text=example.text, label=example.label)


def _gold_rows(inputs: JobInputs, artifacts: ArtifactStore) -> Iterator[SeedExample]:
    if inputs.gold is not None:
        yield from read_rows(artifacts, inputs.gold.id)
    else:
        yield from (row for row in read_rows(artifacts, inputs.seeds.id) if row.holdout)


def check_written(request: RunRequest) -> CheckedRequest:
    """`check_request`, in the words of someone who knows no files of the server.

    Raises:
        RequestError: what is wrong, for instance gold that repeats a seed.
    """
    try:
        return check_request(request)
    except InputError as exc:
        message = str(exc).replace(f"{request.seeds.parent}/", "")
        raise RequestError(message, [Fault(code=exc.code, message=message)], code="invalid_input") from exc

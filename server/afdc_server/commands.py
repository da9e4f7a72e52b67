"""Scoring of texts outside a run: `afdc score`, `afdc predict` and `afdc eval`.

Each function opens an engine, loads the adapter if there is one, and streams batches; only the records of one
batch are in memory. With an adapter, model and task default to those it was trained for.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from afdc.adapter import MANIFEST_FILE, AdapterManifest, read_manifest, verify_adapter
from afdc.engine_config import EngineConfig
from afdc.errors import AdapterError, UsageError
from afdc.files import atomic_writer, check_target
from afdc.inputs import iter_texts, read_examples
from afdc.result import EvalReport
from afdc.seeds import first_of_each
from afdc.task import Example, Task
from afdc_pipeline import metrics, scoring
from afdc_pipeline.batches import batched
from afdc_pipeline.seams import Engine, FloatArray, Progress, StageKey
from afdc_server.answering import Answerer
from afdc_server.packaged import PACKAGED_NAME

BATCH_TEXTS = 512
HUB_FOLDER = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})")


@dataclass(frozen=True)
class Labeller:
    """Who labels: a task on a base model, or an adapter. `logs` is where the engine writes its log.

    Attributes:
        model: folder, hub id or ""; "" is the adapter's base model, or the default of the device.
        adapter: an adapter folder, or a run's output folder that has one.
    """

    task: Task | None
    model: str = ""
    adapter: Path | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    logs: Path = Path("logs")


@dataclass(frozen=True)
class OpenLabeller:
    """A started engine with everything that a text needs. `served` is the adapter's name; None is the base model."""

    engine: Engine
    task: Task
    served: str | None = None
    temperature: float = 1.0
    prior: tuple[float, ...] = ()
    max_model_len: int = 2048

    @property
    def answerer(self) -> Answerer:
        """The same for an open task."""
        return Answerer(self.engine, self.task, self.served, self.max_model_len)

    async def read(self, texts: list[str]) -> list[dict[str, Any]]:
        """One record a text: label_logprobs, probs, label and confidence, or error; for an open task see `Answerer`."""
        if self.task.is_open:
            return await self.answerer.read(texts)
        scores = await self.engine.score(texts, self.task, self.served)
        probs = self.calibrated(scores.logprobs)
        return [
            {"text": text, "error": scores.errors[i]}
            if i in scores.errors
            else self._record(text, scores.logprobs[i], probs[i])
            for i, text in enumerate(texts)
        ]

    def calibrated(self, logprobs: FloatArray) -> FloatArray:
        """Distribution over the labels, [n, n_labels]: log-prior subtracted, divided by the temperature, softmax."""
        prior = np.asarray(self.prior) if self.prior else 0.0
        return scoring.normalise((logprobs - prior) / self.temperature)

    def _record(self, text: str, logprobs: FloatArray, probs: FloatArray) -> dict[str, Any]:
        best = int(probs.argmax())
        return {
            "text": text,
            "label": self.task.names[best],
            "confidence": float(probs[best]),
            "probs": {name: float(p) for name, p in zip(self.task.names, probs, strict=True)},
            # JSON has no -inf: null is a label that the model gives no probability at all.
            "label_logprobs": {
                name: float(p) if np.isfinite(p) else None for name, p in zip(self.task.names, logprobs, strict=True)
            },
        }


@dataclass(frozen=True)
class ScoreSummary:
    """What `score` wrote."""

    texts: int
    errors: int
    output: Path


async def score(who: Labeller, source: Path, output: Path, progress: Progress) -> ScoreSummary:
    """Write one JSON line for each text of `source`; `output` appears whole or not at all.

    Raises:
        InputError: a line that cannot be read. ModelError, AdapterError, EngineError: nothing can be scored.
        UsageError, StorageError: `output` cannot be written, or the task has no labels; found before an engine starts.
    """
    check_target(output)
    if output.exists() and source.exists() and output.samefile(source):
        raise UsageError(f"{output} is the input itself", remedy="Give --output another file")
    task = locate(who).task
    if task is not None and task.is_open:
        raise UsageError(
            "score writes the log-probabilities of labels, and this task is open: it has none",
            remedy="afdc predict answers texts, and afdc eval compares answers with gold ones",
        )
    total = sum(1 for _ in iter_texts(source))  # finds every fault of the file before an engine starts
    async with open_labeller(who, progress) as labeller:
        return await score_texts(labeller, (text for _, text in iter_texts(source)), output, progress, total)


async def score_texts(
    labeller: OpenLabeller, texts: Iterable[str], output: Path, progress: Progress, total: int | None = None
) -> ScoreSummary:
    """`score` with a labeller that is open already."""
    progress.stage(StageKey(0, "score"), "score texts", total)
    done = errors = 0
    with atomic_writer(output) as stream:
        for batch in batched(texts, BATCH_TEXTS):
            records = await labeller.read(batch)
            stream.writelines(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)
            failed = sum("error" in record for record in records)
            done, errors = done + len(records), errors + failed
            progress.advance(len(records), errors=failed)
    return ScoreSummary(done, errors, output)


async def predict(who: Labeller, texts: list[str], progress: Progress) -> list[dict[str, Any]]:
    """Records as `score` writes them, in the order of `texts`."""
    async with open_labeller(who, progress) as labeller:
        return await labeller.read(texts)


async def evaluate(who: Labeller, source: Path, progress: Progress) -> EvalReport:
    """Compare predictions with the gold labels of `source`.

    Raises:
        InputError: a line without a label of the task.
    """
    with_task = locate(who)
    examples = read_examples(source, with_task.task)
    if with_task.task is not None:
        first_of_each(examples, with_task.task)  # raises where a text has two labels; repeats with one label stay
    async with open_labeller(with_task, progress) as labeller:
        return await evaluate_examples(labeller, examples, progress)


async def evaluate_examples(labeller: OpenLabeller, examples: Sequence[Example], progress: Progress) -> EvalReport:
    """`evaluate` with a labeller that is open already."""
    progress.stage(StageKey(0, "eval"), "score examples", len(examples))
    if labeller.task.is_open:
        return await labeller.answerer.evaluate(examples)
    parts: list[FloatArray] = []
    rejected = 0
    for batch in batched((example.text for example in examples), BATCH_TEXTS):
        scores = await labeller.engine.score(batch, labeller.task, labeller.served)
        parts.append(labeller.calibrated(scores.logprobs))
        rejected += len(scores.errors)
        progress.advance(len(batch), errors=len(scores.errors))
    gold = labeller.task.positions(str(example.label) for example in examples)
    return build_report(labeller, np.concatenate(parts), np.asarray(gold), rejected)


def build_report(who: OpenLabeller, probs: FloatArray, gold: Any, rejected: int = 0) -> EvalReport:
    """Metrics over `probs` [n, n_labels] and gold label indices [n]; a row of NaN counts as wrong."""
    predicted = scoring.labels(probs)
    return EvalReport(
        **metrics.evaluate(probs, gold).model_dump(),
        model=who.served or "base model",
        errors=rejected,
        interval=metrics.accuracy_interval(gold, predicted),
        labels=metrics.label_table(gold, predicted, who.task.names),
        reliability=metrics.reliability_bins(probs, gold),
    )


@asynccontextmanager
async def open_labeller(who: Labeller, progress: Progress) -> AsyncIterator[OpenLabeller]:
    """Start an engine for `who` and close it at the end.

    Raises:
        UsageError: neither a task nor an adapter. ModelError, AdapterError, EngineError: see there.
    """
    # The engine's module brings vLLM; what is checked before must not wait for it.
    who = locate(who)
    manifest = verify_adapter(who.adapter) if who.adapter else None
    from afdc_server.engines import open_engine
    from afdc_server.models import detect_device, resolve_model

    progress.stage(StageKey(0, "start"), "start engine", None)
    model = resolve_model(who.model, detect_device(who.engine.device))
    engine = open_engine(model, _engine_config(who.engine, manifest), who.logs)
    try:
        info = await engine.start()
        progress.note(f"{info.model} on {info.device}, {info.dtype}")
        if who.adapter:
            manifest = await engine.load_adapter(who.adapter)
        yield _opened(engine, who, manifest, info.max_model_len)
    finally:
        await engine.close()


def locate(who: Labeller) -> Labeller:
    """`who` with adapter folder, task and model settled.

    Raises:
        UsageError: no task is known. AdapterError: the folder holds no adapter.
    """
    adapter = find_adapter(who.adapter) if who.adapter else None
    manifest = read_manifest(adapter) if adapter else None
    task = who.task or (manifest.task if manifest else None)
    if task is None:
        raise UsageError("no task", remedy="Name it with --task T.json, or an adapter with --adapter DIR")
    model = who.model or (base_model_name(manifest) if manifest else "")
    return Labeller(task, model, adapter, who.engine, who.logs)


def base_model_name(manifest: AdapterManifest) -> str:
    """What `resolve_model` has to be asked for to get the adapter's base model again.

    The manifest names the folder that was trained on. A folder of the hub's cache stands for id and commit, and one of
    AFDC's own cache for the packaged model: both can be had on a machine that does not have the folder.
    """
    found = HUB_FOLDER.search(manifest.base_model)
    if found:
        return f"{found['owner']}/{found['name']}@{found['commit']}"
    return PACKAGED_NAME if Path(manifest.base_model).name == PACKAGED_NAME else manifest.base_model


def find_adapter(folder: Path) -> Path:
    """`folder`, or the adapter inside it when it is the output folder of a run.

    Raises:
        AdapterError: neither.
    """
    for path in (folder, folder / "adapter"):
        if (path / MANIFEST_FILE).is_file() and (path / "adapter_config.json").is_file():
            return path
    raise AdapterError(f"{folder} holds no adapter", remedy="Name an adapter folder, or the --out folder of a run")


def _engine_config(config: EngineConfig, manifest: AdapterManifest | None) -> EngineConfig:
    """Room for exactly this adapter's rank: LoRA buffers and their traffic grow with it."""
    return config.model_copy(update={"max_lora_rank": manifest.rank}) if manifest else config


def _opened(engine: Engine, who: Labeller, manifest: AdapterManifest | None, max_model_len: int) -> OpenLabeller:
    assert who.task is not None  # noqa: S101 - `locate` settled it; this tells the type checker
    if manifest is None:
        return OpenLabeller(engine, who.task, max_model_len=max_model_len)
    prior = manifest.prior if who.task.names == manifest.task.names else ()
    return OpenLabeller(engine, who.task, manifest.name, manifest.temperature, prior, max_model_len)

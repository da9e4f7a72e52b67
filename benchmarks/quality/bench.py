"""What every method works with: one engine, one trainer and one cache a process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import afdc_pipeline
import afdc_trainer
from afdc.config import RunConfig
from afdc.engine_config import EngineConfig
from afdc.layout import RunLayout
from afdc.task import Example, Task
from afdc.training import RESULT_FILE, ROWS_FILE, TrainJob, TrainRow
from afdc_pipeline import metrics, scoring
from afdc_pipeline.seams import Encoder as LabellingEncoder
from afdc_pipeline.seams import Engine, EngineInfo, FloatArray, Trainer
from afdc_pipeline.stages.fit import write_rows
from afdc_server.models import ModelRef, detect_device, resolve_model
from benchmarks.quality.cache import KeyValue, code_digest
from benchmarks.quality.cached_engine import CachedEngine
from benchmarks.quality.encoder import Encoder
from benchmarks.quality.tasks import Drawn, DrawSpec, TaskFolder
from benchmarks.quality.trainers import InsideEncoder, InsideTrainer, SharedTrainer

if TYPE_CHECKING:
    from benchmarks.quality.torch_engine import TorchEngine

ENGINES = ("torch", "vllm")
TRAINERS = ("process", "inside")
JUDGES = ("lora", "encoder", "none")


@dataclass(frozen=True)
class Options:
    """How a sweep computes. `work` holds caches, results and run folders."""

    work: Path
    model: str = ""
    device: str = "auto"
    engine: str = "torch"
    trainer: str = "process"
    judge: str = "lora"
    judge_rows: int = 0
    judge_epochs: int = 2
    gold_epochs: int = 4
    members: int = 3
    keep: bool = False


@dataclass(frozen=True)
class Case:
    """One method's run: a task, its drawn rows, the settings of the product, and a folder of its own."""

    task: TaskFolder
    spec: DrawSpec
    drawn: Drawn
    config: RunConfig
    folder: Path

    @property
    def gold_labels(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Label indices of the test rows, int64 [n]."""
        return np.array([self.task.task.names.index(row.label or "") for row in self.drawn.test])

    @property
    def test_texts(self) -> list[str]:
        return [row.text for row in self.drawn.test]


@dataclass(frozen=True)
class Outcome:
    """What a method reached. `facts` is whatever else it has to say (JSON values)."""

    accuracy: float
    macro_f1: float
    ece: float | None
    facts: dict[str, Any] = field(default_factory=dict)


def mean_outcome(probs: Sequence[FloatArray], case: Case, facts: dict[str, Any] | None = None) -> Outcome:
    """Mean of the metrics of several runs of one method; `members` holds each run's accuracy."""
    each = [metrics.evaluate(one, case.gold_labels) for one in probs]
    accuracies = [one.accuracy for one in each]
    return Outcome(
        accuracy=sum(accuracies) / len(each),
        macro_f1=sum(one.macro_f1 or 0.0 for one in each) / len(each),
        ece=sum(one.ece or 0.0 for one in each) / len(each),
        facts={**(facts or {}), **({"members": accuracies} if len(each) > 1 else {})},
    )


@dataclass
class Bench:
    """One process's workshop."""

    options: Options
    engine: CachedEngine
    info: EngineInfo
    trainer: SharedTrainer
    encoder: Encoder
    labelling_encoder: LabellingEncoder
    measuring_seconds: float = 0.0
    _plain: TorchEngine | None = None

    @classmethod
    async def open(cls, options: Options) -> Bench:
        """Start the engine."""
        answers = KeyValue(options.work / "answers.db")
        engine = CachedEngine(make_engine(options), answers, options.work / "locks")
        info = await engine.start()
        inner: Trainer = InsideTrainer() if options.trainer == "inside" else _process_trainer(options.work)
        trainer = SharedTrainer(inner, options.work / "adapters", trainer_code())
        labelling = _labelling_encoder(options)
        return cls(options, engine, info, trainer, Encoder(answers, info.device), labelling)

    def clock(self) -> float:
        """Seconds that go on as if nothing had been found in the cache."""
        return time.perf_counter() + self.engine.saved_seconds + self.trainer.saved_seconds

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Within the block time belongs to the measurement and not to the method. Blocks may lie in each other."""
        started, before = self.clock(), self.measuring_seconds
        try:
            yield
        finally:
            self.measuring_seconds = before + self.clock() - started

    async def plain_engine(self) -> TorchEngine:
        """An engine that scores behind any prompt: this bench's own where it is of that kind."""
        from benchmarks.quality.torch_engine import TorchEngine  # imports torch

        if self._plain is None:
            inner = self.engine.inner
            self._plain = inner if isinstance(inner, TorchEngine) else _torch_engine(self.options)
            await self._plain.start()
        return self._plain

    async def probs(self, texts: Sequence[str], task: Task, adapter: str | None = None) -> FloatArray:
        """Label distributions [n, n_labels] under the base model or a loaded adapter."""
        scores = await self.engine.score(texts, task, adapter)
        return scoring.normalise(scores.logprobs)

    async def fit(
        self,
        task: Task,
        rows: Sequence[TrainRow],
        config: RunConfig,
        folder: Path,
        epochs: int,
        seed: int,
        repeat: int = 1,
    ) -> Path:
        """An adapter trained on rows with the product's trainer; returns its folder."""
        layout = RunLayout(folder.resolve())
        name = f"fit-{seed}"
        place = layout.rounds / name
        write_rows(place / ROWS_FILE, rows)
        probes = tuple(dict.fromkeys(row.text for row in rows))[:4]
        job = TrainJob(
            name=name,
            job="quality",
            round=0,
            model=self.info.model_path,
            model_revision=self.info.model_revision,
            task=task,
            template_hash=self.engine.template_hash(task),
            rows=place / ROWS_FILE,
            epochs=epochs,
            gold_repeat=repeat,
            seed=seed,
            config=config.train,
            probes=probes,
            max_tokens=self.info.max_model_len,
            work=place / "work",
            adapters=layout.adapters,
            result=place / RESULT_FILE,
        )
        result = await self.trainer.fit(job)
        assert result.adapter is not None
        return result.adapter

    async def probs_of(self, adapter: Path, texts: Sequence[str], task: Task) -> FloatArray:
        """`probs` of test rows under an adapter folder, which is loaded and unloaded again."""
        with self.measuring():
            manifest = await self.engine.load_adapter(adapter)
            try:
                return await self.probs(texts, task, manifest.name)
            finally:
                await self.engine.unload_adapter(manifest.name)


def hard_row(task: Task, row: Example, *, gold: bool = True) -> TrainRow:
    """A labelled text as a training row."""
    return TrainRow(text=row.text, targets={task.names.index(row.label or ""): 1.0}, gold=gold)


def make_engine(options: Options) -> Engine:
    """The engine that the options name, not started."""
    if options.engine != "vllm":
        return _torch_engine(options)
    from afdc_server.engine.build import make_engine as make_vllm  # imports vLLM

    return make_vllm(*_model_and_config(options), options.work / "logs")


def _torch_engine(options: Options) -> TorchEngine:
    from benchmarks.quality.torch_engine import TorchEngine  # imports torch

    return TorchEngine(*_model_and_config(options))


def _model_and_config(options: Options) -> tuple[ModelRef, EngineConfig]:
    model = resolve_model(options.model, detect_device(options.device))
    return model, EngineConfig.model_validate({"device": options.device})


def trainer_code() -> str:
    """Digest of the code that trains adapters."""
    return code_digest([Path(folder) for folder in afdc_trainer.__path__], without=("encoder",))


def loop_code() -> str:
    """Digest of the code of loop and trainer: results of the product's loop made with other code are stale.

    What a plan expects is no part of a loop.
    """
    folders = [Path(folder) for folder in (*afdc_pipeline.__path__, *afdc_trainer.__path__)]
    return code_digest(folders, without=("estimate", "rates"))


def baseline_code() -> str:
    """Digest of the code of the baselines that neither train an adapter nor run the loop."""
    names = ("methods", "in_context", "encoder", "contrastive")
    return code_digest([Path(__file__).with_name(f"{name}.py") for name in names])


def _labelling_encoder(options: Options) -> LabellingEncoder:
    from afdc_server.encoder import SubprocessEncoder, resolve_encoder

    info = resolve_encoder("")
    return InsideEncoder(info) if options.trainer == "inside" else SubprocessEncoder(info, options.work / "logs")


def _process_trainer(work: Path) -> Trainer:
    from afdc_server.trainer import SubprocessTrainer

    return SubprocessTrainer(work / "logs")

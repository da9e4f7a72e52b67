"""The Engine seam on plain transformers: no vLLM, no process, CPU or GPU. For measuring, not for serving."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from afdc.adapter import AdapterManifest
from afdc.config import TrainConfig
from afdc.engine_config import EngineConfig
from afdc.errors import AdapterError, EngineDiedError, InputError
from afdc.prompting import PromptCodec, encode_chat, encode_continuation
from afdc.task import Task
from afdc_pipeline.seams import EngineInfo, EngineUsage, Generated, GenerateRequest, Health, Scores
from afdc_server.engine.adapters import check_files, check_probes, check_template
from afdc_server.engine.reading import FEW_READS
from afdc_server.engine.trie import LabelTrie
from afdc_server.models import ModelRef
from afdc_trainer import model as trainer_model
from afdc_trainer.attention import ATTENTION as PACKED
from afdc_trainer.publish import label_logprobs, path_logprobs
from benchmarks.quality.decode import Decoder, Prompt
from benchmarks.quality.kv_rows import ATTENTION, rows_attention
from benchmarks.quality.likely import likely_paths, share_rest
from benchmarks.quality.lora_switch import LoraSwitch
from benchmarks.quality.tasks import refuse_open

CPU_BUDGET, GPU_BUDGET = 1536, 16384  # tokens of one scoring pass beyond the shared prefix
MAX_RANK = 256


class TorchEngine:
    """One model in this process. Implements `afdc_pipeline.seams.Engine`; a call runs to its end before the next."""

    def __init__(self, model: ModelRef, config: EngineConfig) -> None:
        self._ref, self._config = model, config
        self._usage = EngineUsage()
        self._plan = lru_cache(maxsize=16)(self._make_plan)
        self._live: dict[str, Path] = {}
        self._decoder: Decoder | None = None

    async def start(self) -> EngineInfo:
        """Load the model, once; later calls only answer."""
        if self._decoder is None:
            started = time.perf_counter()
            self._load()
            self._usage = replace(self._usage, startup_seconds=time.perf_counter() - started)
        return self.info

    def _load(self) -> None:
        from transformers import AttentionInterface  # takes seconds to import

        dtype_name = "float32" if self._config.dtype == "float16" else self._config.dtype  # scoring is the trainer's
        settings = TrainConfig(device=self._config.device, dtype=dtype_name)
        device = trainer_model.choose_device(settings)
        dtype = trainer_model.choose_dtype(settings, device)
        self.tokenizer: Any = trainer_model.load_tokenizer(self._ref.path)
        self._model = trainer_model.load_model(self._ref.path, dtype, device)
        AttentionInterface.register(ATTENTION, rows_attention)
        self._switch = LoraSwitch(self._model)
        self._decoder = Decoder(self._model, self.tokenizer, _end_ids(self._model, self.tokenizer))
        limit = min(self._config.max_model_len, trainer_model.longest_path(self._model))
        self.info = EngineInfo(
            model=self._ref.name,
            model_path=self._ref.path,
            model_revision=self._ref.revision,
            version=f"transformers {version('transformers')}",
            device=device.type,
            dtype=str(dtype).removeprefix("torch."),
            max_model_len=limit,
            chat=bool(self.tokenizer.chat_template),
            parameters=self._ref.parameters,
        )

    async def close(self) -> None:
        """Drop the adapters. The model stays for the next job of this process."""
        for name in list(self._live):
            await self.unload_adapter(name)

    async def generate(self, requests: Sequence[GenerateRequest], task: Task | None = None) -> AsyncIterator[Generated]:
        """As the seam says, for tasks with labels: the sweep has no method for open ones.

        Raises:
            UsageError: `task` is given, which only open tasks do.
        """
        refuse_open(task)
        by_adapter: dict[str | None, list[GenerateRequest]] = {}
        for request in requests:
            by_adapter.setdefault(request.adapter, []).append(request)
        for adapter, group in by_adapter.items():
            self._activate(adapter)
            for one in self._generate(group):
                yield one

    def _generate(self, requests: Sequence[GenerateRequest]) -> list[Generated]:
        assert self._decoder is not None
        started = time.perf_counter()
        answers: list[Generated] = []
        prompts: list[Prompt] = []
        accepted: list[GenerateRequest] = []
        for request in requests:
            try:
                prompts.append(Prompt(self._encode(request), request.n, request.sampling))
                accepted.append(request)
            except InputError as exc:
                answers.append(Generated(request.id, error=str(exc)))
        for index, completions in self._decoder.run(prompts):
            answers.append(Generated(accepted[index].id, tuple(completions)))
        self._count(
            started,
            prompt_tokens=sum(len(prompt.ids) for prompt in prompts),
            completion_tokens=sum(c.tokens for answer in answers for c in answer.completions),
        )
        return answers

    def _encode(self, request: GenerateRequest) -> list[int]:
        prompt = request.prompt
        encoded = (
            encode_continuation(self.tokenizer, prompt)
            if isinstance(prompt, str)
            else encode_chat(self.tokenizer, prompt)
        )
        room = self.info.max_model_len - request.sampling.max_tokens
        if not 0 < len(encoded) <= room:
            raise InputError(f"the prompt has {len(encoded)} tokens; it must have at least one and at most {room}")
        return encoded

    async def score(self, texts: Sequence[str], task: Task, adapter: str | None = None) -> Scores:
        self._activate(adapter)
        return self._score(texts, self._plan(task))

    def score_prompts(self, texts: Sequence[str], codec: PromptCodec) -> Scores:
        """As `score`, by the base model behind the prompts of any codec."""
        self._switch.activate(None)
        return self._score(texts, codec)

    def _score(self, texts: Sequence[str], codec: PromptCodec) -> Scores:
        started = time.perf_counter()
        logprobs = np.full((len(texts), len(codec.task.labels)), np.nan)
        errors: dict[int, str] = {}
        for index, text in enumerate(texts):
            try:
                codec.check_length(text, self.info.max_model_len)
            except InputError as exc:
                errors[index] = str(exc)
        good = [index for index in range(len(texts)) if index not in errors]
        budget = len(codec.prefix_ids) + (CPU_BUDGET if self.info.device == "cpu" else GPU_BUDGET)
        self._model.set_attn_implementation(PACKED)
        if good:
            logprobs[good] = self._read(codec, [texts[index] for index in good], budget)
        fixed = len(codec.prefix_ids) + len(codec.suffix_ids)
        self._count(started, prompt_tokens=sum(fixed + len(codec.text_ids(texts[i])) for i in good))
        return Scores(logprobs, errors)

    def _read(self, codec: PromptCodec, texts: Sequence[str], budget: int) -> Any:
        """All labels of every text; with many labels only the likely ones to their end, as the product's engine."""
        floor, paths = self._config.label_floor, codec.scored_ids
        trie = LabelTrie.build(paths)
        if not floor or len(trie.reads) <= FEW_READS:
            return label_logprobs(self._model, codec, texts, budget)
        first = sorted({path[:1] for path in paths})
        heads = path_logprobs(self._model, codec, [(text, first) for text in texts], budget)
        heads = [dict(zip(first, row, strict=True)) for row in heads]
        likely = [likely_paths(paths, head, floor) for head in heads]
        asked = [(text, [paths[label] for label in labels]) for text, labels in zip(texts, likely, strict=True)]
        found = path_logprobs(self._model, codec, asked, budget)
        return [share_rest(paths, *one) for one in zip(heads, likely, found, strict=True)]

    def _activate(self, adapter: str | None) -> None:
        if adapter is not None and adapter not in self._live:
            raise AdapterError(f"no adapter {adapter!r} is loaded", remedy="Load its folder first")
        self._switch.activate(adapter)

    async def load_adapter(self, folder: Path) -> AdapterManifest:
        manifest = check_files(folder, self.info.model, self.info.model_revision, MAX_RANK)
        check_template(manifest, self.template_hash(manifest.task))
        self._switch.add(manifest.name, folder)
        self._switch.activate(manifest.name)
        probes = [probe.text for probe in manifest.probes]
        served = self._score(probes, self._plan(manifest.task)).logprobs
        exact = self.info.dtype == manifest.probe_dtype == "float32"
        try:
            check_probes(manifest, served, 1e-3 if exact else 0.15)
        except AdapterError:
            self._switch.remove(manifest.name)
            raise
        self._live[manifest.name] = folder
        return manifest

    async def unload_adapter(self, name: str) -> None:
        self._live.pop(name, None)
        self._switch.remove(name)

    async def health(self) -> Health:
        if self._decoder is None:
            raise EngineDiedError("the engine is not started")
        return "ready"

    async def lend_device(self) -> None:
        """Give unused GPU memory back for the trainer."""
        if self.info.device == "cuda":
            torch.cuda.empty_cache()

    async def reclaim_device(self) -> None:
        """Nothing was taken."""

    def template_hash(self, task: Task) -> str:
        return self._plan(task).template_hash

    def usage(self) -> EngineUsage:
        return self._usage

    def _make_plan(self, task: Task) -> PromptCodec:
        return PromptCodec(self.tokenizer, task)

    def _count(self, started: float, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        have = self._usage
        self._usage = replace(
            have,
            prompt_tokens=have.prompt_tokens + prompt_tokens,
            completion_tokens=have.completion_tokens + completion_tokens,
            busy_seconds=have.busy_seconds + time.perf_counter() - started,
        )


def _end_ids(model: Any, tokenizer: Any) -> set[int]:
    """End tokens of the tokenizer and of the model's generation settings."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ends = configured if isinstance(configured, list) else [configured]
    return {one for one in [*ends, tokenizer.eos_token_id] if one is not None}

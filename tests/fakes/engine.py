"""A deterministic engine without a model: same request, same answer. Lives in tests only."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import numpy as np

from afdc.adapter import AdapterManifest, verify_adapter
from afdc.files import canonical_json, sha256_bytes
from afdc.task import Task
from afdc_pipeline.seams import Completion, EngineInfo, EngineUsage, Generated, GenerateRequest, Health, Scores

WORDS = tuple(w + s for w in ("river", "stone", "lamp", "train", "cloud", "garden", "copper") for s in ("s", "er"))


def stable_rng(*parts: object) -> np.random.Generator:
    """A generator seeded by the parts alone."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


class FakeEngine:
    """Generates word salad that carries its label's name, and scores by finding it, with seeded noise."""

    def __init__(self, *, noise: float = 1.0, on_call: Callable[[str], None] | None = None) -> None:
        self.noise = noise
        self.adapters: dict[str, Path] = {}
        self.calls: list[str] = []
        self._on_call = on_call or (lambda _: None)
        self._tokens = [0, 0]

    async def start(self) -> EngineInfo:
        return EngineInfo("fake", Path("/nonexistent"), "rev0", "0", "cpu", "float32", 2048, False, 0)

    async def close(self) -> None:
        self.adapters.clear()

    async def generate(self, requests: Sequence[GenerateRequest], task: Task | None = None) -> AsyncIterator[Generated]:
        for request in requests:
            self._call(f"{'answer' if task else 'generate'}:{request.id}")
            assert request.adapter is None or request.adapter in self.adapters, f"{request.adapter} is not loaded"
            if task and "POISON" in str(request.prompt):
                yield Generated(request.id, error="poisoned")
                continue
            if task:
                yield Generated(request.id, tuple(self._answer(request, draw) for draw in range(request.n)))
                continue
            completions = tuple(self._complete(request, draw) for draw in range(request.n))
            self._tokens[0] += 10
            self._tokens[1] += sum(c.tokens for c in completions)
            yield Generated(request.id, completions)

    def _answer(self, request: GenerateRequest, draw: int) -> Completion:
        """The longest word of the text; a sampled draw sometimes says another one, a model without adapter often."""
        rng = stable_rng(request.prompt, request.sampling.seed, request.adapter or "", draw)
        words = sorted(str(request.prompt).split(), key=lambda word: (-len(word), word))
        is_wrong = rng.random() < (0.2 if request.adapter else 0.6) * bool(request.sampling.temperature)
        text = str(rng.choice(words)) if is_wrong else words[0]
        self._tokens[1] += 2
        return Completion(text, tokens=2, finished=rng.random() > 0.05, mean_logprob=-0.5 if is_wrong else -0.1)

    def _complete(self, request: GenerateRequest, draw: int) -> Completion:
        rng = stable_rng(request.id, request.sampling.seed, draw)
        words = rng.choice(WORDS, size=int(rng.integers(4, 9)))
        label = _last_label_word(str(request.prompt))
        text = " ".join([*words, str(int(rng.integers(10**9))), label])
        return Completion(text, tokens=len(words) + 2, finished=True)

    async def score(self, texts: Sequence[str], task: Task, adapter: str | None = None) -> Scores:
        self._call(f"score:{adapter}:{len(texts)}")
        assert adapter is None or adapter in self.adapters, f"{adapter} is not loaded"
        rows, errors = [], {}
        for index, text in enumerate(texts):
            noise = stable_rng(text, adapter or "").normal(0, self.noise, len(task.labels))
            hit = np.array([3.0 if name.casefold() in text.casefold() else 0.0 for name in task.names])
            logits = hit * (1.5 if adapter else 1.0) + noise
            rows.append(logits - np.log(np.exp(logits).sum()) - 0.1)
            if "POISON" in text:
                errors[index] = "poisoned"
                rows[-1] = np.full(len(task.labels), np.nan)
        self._tokens[0] += len(texts) * 20
        return Scores(np.array(rows).reshape(len(texts), len(task.labels)), errors)

    async def load_adapter(self, folder: Path) -> AdapterManifest:
        manifest = verify_adapter(folder)
        self._call(f"load:{manifest.name}")
        self.adapters[manifest.name] = folder
        return manifest

    async def unload_adapter(self, name: str) -> None:
        self.adapters.pop(name, None)

    async def health(self) -> Health:
        return "ready"

    async def lend_device(self) -> None:
        return None

    async def reclaim_device(self) -> None:
        return None

    def template_hash(self, task: Task) -> str:
        return sha256_bytes(canonical_json(task.model_dump(mode="json")))

    def usage(self) -> EngineUsage:
        return EngineUsage(prompt_tokens=self._tokens[0], completion_tokens=self._tokens[1])

    def _call(self, what: str) -> None:
        self.calls.append(what)
        self._on_call(what)


def _last_label_word(prompt: str) -> str:
    """The fake prompt reader: tests name their labels in capitals, and the last one in the prompt wins."""
    capitals = [word.strip(".:,-\"'()[]") for word in prompt.replace("\n", " ").split()]
    return next((word for word in reversed(capitals) if word.isupper() and len(word) > 2), "")

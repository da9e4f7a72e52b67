"""Answers in free text outside a run: what `afdc predict` and `afdc eval` do for an open task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afdc.result import EvalReport
from afdc.task import Example, Task, normalise_text
from afdc_pipeline import metrics
from afdc_pipeline.answers import exact_match
from afdc_pipeline.seams import Engine, Generated, GenerateRequest, Sampling
from afdc_pipeline.stages.answer import ask

MAX_TOKENS = 256


@dataclass(frozen=True)
class Answerer:
    """A started engine and the open task that it answers. `served` is the adapter's name; None is the base model."""

    engine: Engine
    task: Task
    served: str | None
    max_model_len: int

    async def read(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """One record a text: the greedy answer, its mean log-prob a token and exp of that as confidence; or error."""
        tokens = min(MAX_TOKENS, self.max_model_len // 2)
        greedy = Sampling(temperature=0.0, max_tokens=tokens)
        requests = [GenerateRequest(str(i), text, 1, greedy, self.served) for i, text in enumerate(texts)]
        answers = await ask(self.engine, self.task, requests)
        return [_record(text, answer, tokens) for text, answer in zip(texts, answers, strict=True)]

    async def evaluate(self, examples: Sequence[Example]) -> EvalReport:
        """Exact match and token F1 against the gold answers; a text without an answer counts as wrong."""
        records = await self.read([one.text for one in examples])
        gold, given = [one.label or "" for one in examples], [record.get("answer", "") for record in records]
        hits = np.array([exact_match(*pair) for pair in zip(gold, given, strict=True)])
        return EvalReport(
            **metrics.evaluate_answers(gold, given).model_dump(),
            model=self.served or "base model",
            errors=sum("error" in record for record in records),
            interval=metrics.accuracy_interval(np.ones_like(hits), hits),
        )


def _record(text: str, generated: Generated, tokens: int) -> dict[str, Any]:
    if generated.error:
        return {"text": text, "error": generated.error}
    [completion] = generated.completions
    answer = normalise_text(completion.text)
    if not completion.finished or not answer:
        return {"text": text, "error": f"no answer that ends within {tokens} tokens"}
    logprob = float(completion.mean_logprob or 0.0)
    return {"text": text, "answer": answer, "confidence": math.exp(min(logprob, 0.0)), "mean_logprob": logprob}

"""Read the label scores of one text from a backend: all nodes of the trie, or those that are worth it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from afdc_pipeline.seams import FloatArray
from afdc_server.engine.backend import AdapterSlot, Backend
from afdc_server.engine.tasks import all_or_none
from afdc_server.engine.trie import LabelTrie

FEW_READS = 8  # a text: so few go at once, and waiting for the first to leave some out would save nothing


@dataclass(frozen=True)
class LabelReading:
    """Log-probs [n_labels] of one text, and the prompt tokens of its reads with those found in the prefix cache."""

    logprobs: FloatArray
    prompt_tokens: int
    cached_tokens: int


async def read_labels(
    backend: Backend, prompt: Sequence[int], trie: LabelTrie, slot: AdapterSlot | None, floor: float = 0.0
) -> LabelReading:
    """The node reads of one text at once, which share the prompt through the prefix cache.

    Args:
        floor: above 0 the reads go level by level, and nodes below that share of the probability are left out.
    """
    answers: dict[int, Sequence[float]] = {}
    tokens = cached = 0
    for level in trie.levels if floor else [range(len(trie.reads))]:
        numbers = trie.worth(answers, level, floor)
        reads = [trie.reads[number] for number in numbers]
        found = await all_or_none(backend.read([*prompt, *read.path], read.ids, slot) for read in reads)
        tokens += sum(len(prompt) + len(read.path) for read in reads)
        cached += sum(one.cached_tokens for one in found)
        answers |= {number: one.logprobs for number, one in zip(numbers, found, strict=True)}
    logprobs = trie.assemble([answers.get(number) for number in range(len(trie.reads))])
    return LabelReading(logprobs, tokens, cached)

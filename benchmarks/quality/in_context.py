"""Seeds as earlier turns of the conversation, and the prior that such a prompt brings, divided out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from afdc.prompting import Message, PromptCodec, Tokenizer, encode_chat, system_prompt
from afdc.task import Example, Task
from afdc_pipeline import scoring
from afdc_pipeline.seams import FloatArray

ROOM = 256  # tokens kept free for the text, the label and the chat markup
CONTENT_FREE = ("N/A", "[MASK]", "?")


class TurnsCodec(PromptCodec):
    """Prompts with the shown seeds as user turns and their labels as the assistant's answers."""

    def __init__(self, tokenizer: Tokenizer, task: Task, shown: Sequence[Example]) -> None:
        super().__init__(tokenizer, task)
        turns = [Message("system", system_prompt(task))]
        for seed in shown:
            turns += [Message("user", seed.text), Message("assistant", seed.label or "")]
        ids = encode_chat(tokenizer, [*turns, Message("user", "")])
        assert ids[-len(self.suffix_ids) :] == self.suffix_ids, "the prompt ends otherwise with earlier turns"
        self.prefix_ids = ids[: -len(self.suffix_ids)]


def few_shot_codec(tokenizer: Tokenizer, task: Task, seeds: Sequence[Example], limit: int) -> tuple[TurnsCodec, int]:
    """The codec that shows as many seeds as fit into `limit` tokens, labels in turn, and how many those are."""
    ordered = list(in_turn(seeds))
    low, high = 0, len(ordered)
    while low < high:  # the largest number that fits: prompts only grow
        middle = (low + high + 1) // 2
        fits = len(TurnsCodec(tokenizer, task, ordered[:middle]).prefix_ids) <= limit - ROOM
        low, high = (middle, high) if fits else (low, middle - 1)
    return TurnsCodec(tokenizer, task, ordered[:low]), low


def in_turn(seeds: Sequence[Example]) -> Iterator[Example]:
    """One seed of each label, then the next of each."""
    groups: dict[str, list[Example]] = {}
    for seed in seeds:
        groups.setdefault(seed.label or "", []).append(seed)
    for layer in zip_longest(*groups.values()):
        yield from (seed for seed in layer if seed is not None)


def calibrate(probs: FloatArray, content_free: FloatArray) -> FloatArray:
    """Contextual calibration (Zhao et al. 2021): divide by the mean prediction for inputs that say nothing."""
    return scoring.reweight(probs, 1 / scoring.label_prior(content_free.mean(axis=0)))

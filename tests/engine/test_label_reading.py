"""Reading the label scores of a text: which nodes are asked for, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from afdc_server.engine.backend import Backend
from afdc_server.engine.reading import read_labels
from afdc_server.engine.trie import LabelTrie
from tests.engine.test_trie import next_logprob

PATHS = [(first, second, 0) for first in range(6) for second in range(6)]


class Answering:
    """Answers reads from the made-up model of the trie's tests and remembers them."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    async def read(self, prompt: Sequence[int], ids: Sequence[int], slot: object) -> Any:
        path = tuple(prompt[1:])
        self.asked.append(path)
        answer = [next_logprob(path, token) for token in ids]
        return type("Answer", (), {"logprobs": answer, "cached_tokens": len(path)})


@pytest.mark.parametrize("floor", [0.0, 0.05])
async def test_likely_labels_are_exact_with_any_floor(floor: float) -> None:
    backend, trie = Answering(), LabelTrie.build(PATHS)
    found = await read_labels(cast(Backend, backend), [99], trie, None, floor)
    exact = [sum(next_logprob(path[:i], token) for i, token in enumerate(path)) for path in PATHS]
    best = int(np.argmax(exact))
    assert found.logprobs[best] == pytest.approx(exact[best])
    assert found.prompt_tokens == sum(1 + len(path) for path in backend.asked)
    assert found.cached_tokens == sum(map(len, backend.asked))


async def test_a_floor_saves_reads() -> None:
    trie = LabelTrie.build(PATHS)
    all_of_them, some = Answering(), Answering()
    await read_labels(cast(Backend, all_of_them), [99], trie, None)
    await read_labels(cast(Backend, some), [99], trie, None, 0.05)
    assert len(all_of_them.asked) == len(trie.reads)
    assert set(some.asked) < set(all_of_them.asked)
    mass = math.log(sum(math.exp(next_logprob((), token)) for token in range(6)))
    left_out = [path for path in set(all_of_them.asked) - set(some.asked) if len(path) == 1]
    assert all(next_logprob((), path[0]) < mass + math.log(0.05) for path in left_out)

"""Continuous batching on plain transformers: sequences start and end at any step, draws share their prompt's pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afdc_pipeline.seams import Completion, Sampling
from benchmarks.quality.kv_rows import ATTENTION, Rows, merge
from benchmarks.quality.sampling import TRIES, sample

REFILL = 0.25  # share of the width that must be free before new prompts are computed
CPU_WIDTH, GPU_WIDTH = 128, 1024
CPU_PREFILL, GPU_PREFILL = 2048, 65536  # tokens of one prefill, padding included


@dataclass
class Draw:
    """One continuation in progress. `uniforms`: float32 [max_tokens, TRIES], from the request's seed and the number."""

    request: int
    number: int
    sampling: Sampling
    uniforms: np.ndarray[Any, np.dtype[np.float32]]
    tokens: list[int] = field(default_factory=list)
    total: float = 0.0
    text: str = ""
    done: bool = False
    stopped: bool = False

    def completion(self) -> Completion:
        return Completion(self.text, len(self.tokens), self.stopped, self.total / max(len(self.tokens), 1))


@dataclass(frozen=True)
class Prompt:
    """Token ids and how to continue them."""

    ids: list[int]
    n: int
    sampling: Sampling


def new_draws(index: int, prompt: Prompt) -> list[Draw]:
    """The draws of a prompt. Without a seed they get fresh entropy."""
    seed, shape = prompt.sampling.seed, (prompt.sampling.max_tokens, TRIES)
    keys = [None if seed is None else [seed, number] for number in range(prompt.n)]
    numbers = [np.random.default_rng(key).random(shape, dtype=np.float32) for key in keys]
    return [Draw(index, number, prompt.sampling, numbers[number]) for number in range(prompt.n)]


class Decoder:
    """Runs prompts through a causal language model whose attention is `kv_rows.rows_attention`."""

    def __init__(self, model: Any, tokenizer: Any, ends: set[int]) -> None:
        """`ends`: ids of end-of-sequence tokens."""
        self.model, self.tokenizer, self.ends = model, tokenizer, ends
        self.device = model.device
        cpu = self.device.type == "cpu"
        self.width, self.prefill_tokens = (CPU_WIDTH, CPU_PREFILL) if cpu else (GPU_WIDTH, GPU_PREFILL)
        self.layers = model.config.get_text_config().num_hidden_layers
        self._pieces: dict[int, str] = {}

    @torch.no_grad()
    def run(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, list[Completion]]]:
        """(index of the prompt, its completions in the order of the draws), as prompts finish."""
        self.model.set_attn_implementation(ATTENTION)
        waiting = deque(sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids)))
        open_draws: dict[int, list[Draw]] = {}
        rows: Rows | None = None
        draws: list[Draw] = []
        logits = torch.empty(0)
        while waiting or draws:
            live = [i for i, draw in enumerate(draws) if not draw.done]
            if waiting and len(live) <= self.width * (1 - REFILL):
                taken = self._take(waiting, prompts, self.width - len(live))
                fresh, new_logits, repeat = self._prefill(
                    [prompts[i].ids for i in taken], [prompts[i].n for i in taken]
                )
                added = {i: new_draws(i, prompts[i]) for i in taken}
                open_draws |= added
                rows, logits = _join(rows, logits, live, (fresh, new_logits, repeat))
                draws = [draws[i] for i in live] + [draw for i in taken for draw in added[i]]
            elif rows is not None and (2 * len(live) <= len(draws) or rows.length == rows.columns):
                rows, logits = _join(rows, logits, live, None)
                draws = [draws[i] for i in live]
            self._extend(draws, logits)
            for index in {draw.request for draw in draws if draw.done} & open_draws.keys():
                if all(draw.done for draw in open_draws[index]):
                    yield index, [draw.completion() for draw in open_draws.pop(index)]
            if all(draw.done for draw in draws):
                rows, draws = None, []
            else:
                assert rows is not None
                logits = self._step(rows, [draw.tokens[-1] for draw in draws])

    def _take(self, waiting: deque[int], prompts: Sequence[Prompt], room: int) -> list[int]:
        """The next prompts whose draws fit into the width and whose prefill fits into its tokens; at least one."""
        taken: list[int] = []
        while waiting:
            prompt = prompts[waiting[0]]
            full = prompt.n > room or (len(taken) + 1) * len(prompt.ids) > self.prefill_tokens
            if taken and full:
                break
            room -= prompt.n
            taken.append(waiting.popleft())
        return taken

    def _prefill(self, prompts: Sequence[list[int]], counts: Sequence[int]) -> tuple[Rows, Tensor, Tensor]:
        """Rows of the prompts, logits [n, V] behind them, and the indices that repeat each prompt for its draws."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(one)) + one for one in prompts], device=self.device)
        lengths = torch.tensor([len(one) for one in prompts], device=self.device)
        rows = Rows.empty(self.layers, lengths)
        rows.length = longest
        low = torch.finfo(self.model.dtype).min
        causal = torch.full((longest, longest), low, dtype=self.model.dtype, device=self.device).triu_(1)
        rows.bias = torch.minimum(rows.seen(self.model.dtype), causal[None, None])
        positions = (torch.arange(longest, device=self.device) - (longest - lengths)[:, None]).clamp_(min=0)
        logits = self._forward(ids, positions, rows)
        repeat = torch.repeat_interleave(torch.tensor(counts)).to(self.device)
        return rows, logits, repeat

    def _step(self, rows: Rows, tokens: list[int]) -> Tensor:
        """Write one token a row and return the logits [B, V] behind it."""
        positions = rows.lengths[:, None].clone()
        rows.lengths += 1
        rows.length += 1
        rows.bias = rows.seen(self.model.dtype)
        return self._forward(torch.tensor(tokens, device=self.device)[:, None], positions, rows)

    def _forward(self, ids: Tensor, positions: Tensor, rows: Rows) -> Tensor:
        output = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=torch.zeros((1, 1, 1, 1), dtype=self.model.dtype, device=self.device),  # 4D: none is built
            logits_to_keep=1,
            use_cache=False,
            rows=rows,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def _extend(self, draws: Sequence[Draw], logits: Tensor) -> None:
        """Sample the next token of every draw that is not done; a done one repeats its last token unread."""
        numbers = np.stack([d.uniforms[min(len(d.tokens), len(d.uniforms) - 1)] for d in draws])
        settings = torch.tensor([[d.sampling.temperature, d.sampling.top_p] for d in draws], device=self.device)
        uniforms = torch.from_numpy(numbers).to(self.device)
        tokens, logprobs = sample(logits, settings[:, 0], settings[:, 1], uniforms)
        for draw, token, logprob in zip(draws, tokens.tolist(), logprobs.tolist(), strict=True):
            if not draw.done:
                draw.tokens.append(token)
                draw.total += logprob
                self._check_end(draw)

    def _check_end(self, draw: Draw) -> None:
        """Note where a draw has ended: end token, stop string (left out of the text) or length."""
        token, stops = draw.tokens[-1], draw.sampling.stop
        ended = token in self.ends
        cut = self._stop_position(draw) if self._may_stop(token, stops) else None
        if ended or cut is not None or len(draw.tokens) == draw.sampling.max_tokens:
            text = self._text(draw.tokens[:-1] if ended else draw.tokens)
            draw.text = text if cut is None else text[:cut]
            draw.stopped = ended or cut is not None
            draw.done = True

    def _may_stop(self, token: int, stops: tuple[str, ...]) -> bool:
        """Whether a token has a character of a stop string, so that one may end in it."""
        if token not in self._pieces:
            self._pieces[token] = self._text([token])
        piece = self._pieces[token]
        return any(char in piece for stop in stops for char in stop)

    def _stop_position(self, draw: Draw) -> int | None:
        text = self._text(draw.tokens)
        found = [text.find(stop) for stop in draw.sampling.stop]
        return min((at for at in found if at >= 0), default=None)

    def _text(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text


def _join(
    rows: Rows | None, logits: Tensor, live: list[int], fresh: tuple[Rows, Tensor, Tensor] | None
) -> tuple[Rows, Tensor]:
    """Running rows that are still live and new rows, with the logits of both."""
    parts: list[tuple[Rows, Tensor]] = []
    parts_logits: list[Tensor] = []
    if rows is not None and live:
        chosen = torch.tensor(live, device=rows.lengths.device)
        parts.append((rows, chosen))
        parts_logits.append(logits[chosen])
    if fresh is not None:
        parts.append((fresh[0], fresh[2]))
        parts_logits.append(fresh[1][fresh[2]])
    return merge(parts), torch.cat(parts_logits)

"""Prompts for variants x~ ~ M(x | x_i, y_i), and the candidates that their completions make.

A draw is named by (job, round, parent, number); its prompt and its sampling seed follow from the run's seed, so a
draw asked for again is the same request. Six draws or fewer share one prompt, which the engine computes once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import overload

from afdc.config import AugmentConfig
from afdc.files import canonical_json, sha256_bytes
from afdc.task import Task
from afdc_pipeline.filters import Style, TextLimits, clean_variant, reject_reason
from afdc_pipeline.prompts import chat_prompt, choose_break_mark, continuation_prompt, prompt_hash
from afdc_pipeline.rows import Candidate, Seed, candidate_id
from afdc_pipeline.seams import Generated, GenerateRequest, Sampling

GROUP = 6
MIN_TOKENS = 24
PROMPT_TOKENS = 192  # more than the fixed wording of either style takes
ITEM_TOKENS = 4  # list marker, fence and line break around a text

EstimateTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """A request and what its completions descend from.

    Attributes:
        request: for draws `first_draw` to `first_draw + request.n - 1` of the parent.
        parent: id of the seed that is varied.
        label: what the variants are generated for; None in an open task.
        seed_ids: the seeds in the prompt, the parent last.
        line_break: what stands for a line break in a continuation; "" when the seeds have none.
        prompt_hash: 16 hex digits over the prompt.
        sampling: canonical JSON of the sampling settings.
    """

    request: GenerateRequest
    job: str
    parent: str
    label: str | None
    seed_ids: tuple[str, ...]
    augment_round: int
    first_draw: int
    style: Style
    line_break: str
    prompt_hash: str
    sampling: str


@dataclass(frozen=True, slots=True)
class Screened:
    """A candidate and why it is left out; None keeps it."""

    candidate: Candidate
    reason: str | None


def estimate_tokens(text: str) -> int:
    """Upper bound that holds for byte-pair vocabularies: ASCII at three characters a token, others at 1.5 bytes."""
    ascii_chars = sum(char < "\x80" for char in text)
    other_bytes = len(text.encode("utf-8", "replace")) - ascii_chars
    return math.ceil(ascii_chars / 3 + other_bytes / 1.5)


def plan_requests(
    seeds: Sequence[Seed],
    task: Task,
    config: AugmentConfig,
    job: str,
    augment_round: int,
    seed: int,
    style: Style,
    adapter: str | None = None,
    *,
    estimate: EstimateTokens = estimate_tokens,
    max_model_len: int = 2048,
) -> RequestPlan:
    """Every request of one augment round, parent by parent, in the order of the seeds.

    Args:
        seeds: D0; held-out seeds are neither varied nor shown, or their gate would know its answers.
        task: instruction and labels.
        config: K variants a seed, context seeds, sampling.
        job: name that goes into candidate ids.
        augment_round: 1-based.
        seed: of the run.
        style: raw text to continue, or chat messages.
        adapter: the adapter that writes; None is the base model.
        estimate: tokens of a text, an upper bound.
        max_model_len: tokens that prompt and completion may have together; context seeds give way to it.
    """
    return RequestPlan(seeds, _Round(task, config, job, augment_round, seed, style, adapter, estimate, max_model_len))


@dataclass(frozen=True)
class _Round:
    """What all requests of a round share."""

    task: Task
    config: AugmentConfig
    job: str
    number: int
    seed: int
    style: Style
    adapter: str | None
    estimate: EstimateTokens
    max_model_len: int


class RequestPlan(Sequence[PlannedRequest]):
    """The requests of a round, parent by parent. Each is built when it is asked for, so a long plan takes no memory."""

    def __init__(self, seeds: Sequence[Seed], shared: _Round) -> None:
        self._shared = shared
        self._parents = [one for one in seeds if not one.holdout]
        self._labels = {label.name: label for label in shared.task.classes}
        peers: dict[str, dict[str, Seed]] = {name: {} for name in self._labels}
        for one in self._parents:
            peers.setdefault(self._group(one), {})[one.id] = one
        self._peers = {name: list(found.values()) for name, found in peers.items()}
        self._groups = draw_groups(shared.config.variants_of(len(self._parents)))
        longest = max((shared.estimate(one.text) for one in self._parents), default=0)
        room = min(max(MIN_TOKENS, 2 * longest), shared.max_model_len // 2)
        self._max_tokens = shared.config.max_tokens or room

    def __len__(self) -> int:
        return len(self._parents) * len(self._groups)

    @overload
    def __getitem__(self, index: int) -> PlannedRequest: ...

    @overload
    def __getitem__(self, index: slice) -> list[PlannedRequest]: ...

    def __getitem__(self, index: int | slice) -> PlannedRequest | list[PlannedRequest]:
        if isinstance(index, slice):
            return [self._request(i) for i in range(*index.indices(len(self)))]
        return self._request(range(len(self))[index])

    def _request(self, index: int) -> PlannedRequest:
        shared, (parent_index, group) = self._shared, divmod(index, len(self._groups))
        parent, (first, n) = self._parents[parent_index], self._groups[group]
        key = (shared.seed, shared.number, parent.id, first)
        shown = self._fitting([*self._context(key, parent), parent])
        texts, label = [one.text for one in shown], self._labels.get(self._group(parent))
        write = chat_prompt if shared.style == "chat" else continuation_prompt
        prompt = write(shared.task, label, texts)
        sampling = self._sampling(key)
        name = f"{parent.id}-a{shared.number}-d{first}"
        return PlannedRequest(
            request=GenerateRequest(name, prompt, n, sampling, shared.adapter),
            job=shared.job,
            parent=parent.id,
            label=label.name if label else None,
            seed_ids=tuple(one.id for one in shown),
            augment_round=shared.number,
            first_draw=first,
            style=shared.style,
            line_break="" if shared.style == "chat" else choose_break_mark(texts),
            prompt_hash=prompt_hash(prompt),
            sampling=canonical_json(asdict(sampling)).decode(),
        )

    def _group(self, seed: Seed) -> str:
        """Seeds that are shown together: those of a label; all of them in an open task."""
        return "" if self._shared.task.is_open else seed.label

    def _sampling(self, key: tuple[object, ...]) -> Sampling:
        config = self._shared.config
        return Sampling(
            temperature=config.temperature,
            top_p=config.top_p,
            max_tokens=self._max_tokens,
            seed=_hash(*key) >> 34,  # 30 bits: the engine adds the draw's number and wants a signed 32-bit integer
            stop=() if self._shared.style == "chat" else ("\n",),
        )

    def _context(self, key: tuple[object, ...], parent: Seed) -> list[Seed]:
        """Peers that hashing picks: the same on every machine and in every Python, however many there are."""
        peers = self._peers[self._group(parent)]
        wanted = min(self._shared.config.context_seeds, len(peers)) - 1
        picked = {parent.id: parent}
        turn = 0
        while len(picked) <= wanted:
            one = peers[_hash(*key, turn) % len(peers)]
            picked.setdefault(one.id, one)
            turn += 1
        return list(picked.values())[1:]

    def _fitting(self, shown: list[Seed]) -> list[Seed]:
        """Without the first seeds where they would not leave room; the parent stays."""
        shared, label = self._shared, self._labels.get(self._group(shown[-1]))
        heading = label.name + label.description if label else ""
        fixed = shared.estimate(shared.task.instruction + heading) + PROMPT_TOKENS
        room = shared.max_model_len - self._max_tokens - fixed
        costs = [shared.estimate(one.text) + ITEM_TOKENS for one in shown]
        while len(shown) > 1 and sum(costs[-len(shown) :]) > room:
            shown = shown[1:]
        return shown


def draw_groups(variants: int) -> list[tuple[int, int]]:
    """(first draw, number of draws) of each prompt: as few prompts as six draws each allow, evenly filled."""
    groups = math.ceil(variants / GROUP)
    starts = [variants * index // groups for index in range(groups + 1)]
    return [(first, end - first) for first, end in pairwise(starts)]


def to_candidates(
    planned: PlannedRequest, generated: Generated, labels: Sequence[str] = (), *, headed: bool = False
) -> list[Candidate]:
    """One candidate a completion, cleaned, in the order of the draws; none when the engine rejected the request.

    `labels` and `headed` are those of `clean_variant`.
    """
    clean = partial(clean_variant, style=planned.style, labels=labels, line_break=planned.line_break, headed=headed)
    draws = enumerate(generated.completions, planned.first_draw)
    return [_candidate(planned, draw, clean(one.text), one.tokens, one.mean_logprob) for draw, one in draws]


def refused_candidates(planned: PlannedRequest) -> list[Candidate]:
    """The draws of a request that the engine rejected: candidates without a text."""
    first = planned.first_draw
    return [_candidate(planned, draw, "") for draw in range(first, first + planned.request.n)]


def screen(
    planned: PlannedRequest, generated: Generated, limits: TextLimits, task: Task, min_mean_logprob: float | None = None
) -> list[Screened]:
    """The candidates of a request, each with the reason for which it is left out. Duplicates stay in."""
    candidates = to_candidates(planned, generated, task.names, headed=limits.headed)
    return [
        Screened(
            candidate,
            reject_reason(
                candidate.text,
                limits,
                finished=completion.finished,
                mean_logprob=completion.mean_logprob,
                min_mean_logprob=min_mean_logprob,
            ),
        )
        for candidate, completion in zip(candidates, generated.completions, strict=True)
    ]


def _candidate(
    planned: PlannedRequest, draw: int, text: str, tokens: int = 0, mean_logprob: float | None = None
) -> Candidate:
    return Candidate(
        id=candidate_id(planned.job, planned.augment_round, planned.parent, draw),
        text=text,
        source="generated",
        intended=planned.label,
        parent=planned.parent,
        seed_ids=planned.seed_ids,
        augment_round=planned.augment_round,
        draw=draw,
        generator=planned.request.adapter or "",
        prompt_hash=planned.prompt_hash,
        sampling=planned.sampling,
        tokens=tokens,
        mean_logprob=mean_logprob,
    )


def _hash(*parts: object) -> int:
    """64 bits."""
    return int(sha256_bytes(canonical_json([str(part) for part in parts]))[:16], 16)

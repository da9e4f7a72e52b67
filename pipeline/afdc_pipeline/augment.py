"""Prompts for variants x~ ~ M(x | x_i, y_i), and the candidates that their completions make.

A draw is named by (job, round, parent, number); its prompt and its sampling seed follow from the run's seed, so a
draw asked for again is the same request. Six draws or fewer share one prompt, which the engine computes once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from afdc.config import AugmentConfig
from afdc.files import canonical_json, sha256_bytes
from afdc.prompting import Message
from afdc.task import Label, Task, normalise_text
from afdc_pipeline.filters import Style, TextLimits, clean_variant, reject_reason
from afdc_pipeline.rows import Candidate, Seed, candidate_id
from afdc_pipeline.seams import Completion, Generated, GenerateRequest, Sampling

GROUP = 6
MIN_TOKENS = 24
PROMPT_TOKENS = 192  # more than the fixed wording of either style takes
FENCES = ("---", "***", "=====", "#####")
CHAT_SYSTEM = "You write realistic texts for a data set. You answer with one text and nothing else."

EstimateTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """A request and what its completions descend from.

    Attributes:
        request: for draws `first_draw` to `first_draw + request.n - 1` of the parent.
        parent: id of the seed that is varied.
        label: what the variants are generated for.
        seed_ids: the seeds in the prompt, the parent last.
        separator: what ends an item of a continuation.
        prompt_hash: 16 hex digits over the prompt.
        sampling: canonical JSON of the sampling settings.
    """

    request: GenerateRequest
    job: str
    parent: str
    label: str
    seed_ids: tuple[str, ...]
    augment_round: int
    first_draw: int
    style: Style
    separator: str
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
) -> Iterator[PlannedRequest]:
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
    usable = [one for one in seeds if not one.holdout]
    longest = max((estimate(one.text) for one in usable), default=0)
    max_tokens = config.max_tokens or min(max(MIN_TOKENS, 2 * longest), max_model_len // 2)
    plan = _Plan(task, config, job, augment_round, seed, style, adapter, estimate, max_model_len, max_tokens)
    for parent in usable:
        peers = [one for one in usable if one.label == parent.label and one.id != parent.id]
        yield from plan.requests(parent, peers)


@dataclass(frozen=True)
class _Plan:
    """What all requests of a round share."""

    task: Task
    config: AugmentConfig
    job: str
    augment_round: int
    seed: int
    style: Style
    adapter: str | None
    estimate: EstimateTokens
    max_model_len: int
    max_tokens: int

    def requests(self, parent: Seed, peers: Sequence[Seed]) -> Iterator[PlannedRequest]:
        for first, n in draw_groups(self.config.variants):
            key = (self.seed, self.augment_round, parent.id, first)
            shown = self._fitting([*self._context(key, peers), parent])
            yield self._request(key, parent, shown, first, n)

    def _context(self, key: tuple[object, ...], peers: Sequence[Seed]) -> list[Seed]:
        """Peers in an order that hashing decides: it is the same on every machine and in every Python."""
        ordered = sorted(peers, key=lambda one: _hash(*key, one.id))
        return ordered[: self.config.context_seeds - 1]

    def _fitting(self, shown: list[Seed]) -> list[Seed]:
        """Without the first seeds where they would not leave room; the parent stays."""
        label = next(label for label in self.task.labels if label.name == shown[-1].label)
        fixed = self.estimate(self.task.instruction + label.name + label.description) + PROMPT_TOKENS
        room = self.max_model_len - self.max_tokens - fixed
        costs = [self.estimate(one.text) + 4 for one in shown]
        while len(shown) > 1 and sum(costs[-len(shown) :]) > room:
            shown = shown[1:]
        return shown

    def _request(
        self, key: tuple[object, ...], parent: Seed, shown: Sequence[Seed], first: int, n: int
    ) -> PlannedRequest:
        label = next(label for label in self.task.labels if label.name == parent.label)
        texts = [one.text for one in shown]
        separator = choose_separator(texts)
        chat = self.style == "chat"
        prompt = chat_prompt(self.task, label, texts) if chat else continuation_prompt(self.task, label, texts)
        sampling = Sampling(
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            max_tokens=self.max_tokens,
            seed=_hash(*key) >> 34,  # 30 bits: the engine adds the draw's number and wants a signed 32-bit integer
            stop=() if chat else (separator,),
        )
        name = f"{parent.id}-a{self.augment_round}-d{first}"
        return PlannedRequest(
            request=GenerateRequest(name, prompt, n, sampling, self.adapter),
            job=self.job,
            parent=parent.id,
            label=label.name,
            seed_ids=tuple(one.id for one in shown),
            augment_round=self.augment_round,
            first_draw=first,
            style=self.style,
            separator=separator,
            prompt_hash=prompt_hash(prompt),
            sampling=canonical_json(asdict(sampling)).decode(),
        )


def draw_groups(variants: int) -> Iterator[tuple[int, int]]:
    """(first draw, number of draws) of each prompt: as few prompts as six draws each allow, evenly filled."""
    groups = math.ceil(variants / GROUP)
    for index in range(groups):
        first = variants * index // groups
        yield first, variants * (index + 1) // groups - first


def choose_separator(texts: Sequence[str]) -> str:
    """What ends an item: a line break, or a fence line that no text contains when some text has line breaks."""
    if all(len(text.splitlines()) <= 1 for text in texts):
        return "\n"
    fences = (*FENCES, *("=" * n for n in range(6, max(map(len, texts)) + 7)))
    return "\n" + next(fence for fence in fences if not any(fence in text for text in texts))


def continuation_prompt(task: Task, label: Label, texts: Sequence[str]) -> str:
    """A list under the label's name that stops where the next item begins. Markup only, no words of any language."""
    separator = choose_separator(texts)
    heading = f"{label.name} ({normalise_text(label.description)})" if label.description else label.name
    head = f"{normalise_text(task.instruction)}\n\n{heading}:"
    if separator == "\n":
        return f"{head}\n" + "".join(f"- {text}\n" for text in texts) + "-"
    fence = separator[1:]
    return f"{head}\n\n{fence}\n" + "".join(f"{text}\n{fence}\n" for text in texts)


def chat_prompt(task: Task, label: Label, texts: Sequence[str]) -> tuple[Message, ...]:
    """Ask for one new text of the label. The examples set language, length and form."""
    fence = choose_separator([*texts, "\n"])[1:]
    examples = f"\n{fence}\n".join(texts)
    meaning = f" ({normalise_text(label.description)})" if label.description else ""
    request = (
        f"Task of the data set: {normalise_text(task.instruction)}\n"
        f"Label: {label.name}{meaning}\n\n"
        f"Texts with this label, separated by {fence}\n\n{examples}\n\n"
        "Write one new text that clearly has this label. Choose another subject and other words than the texts above; "
        "keep their language, their length and their style. Answer with the text alone."
    )
    return (Message("system", CHAT_SYSTEM), Message("user", request))


def prompt_hash(prompt: str | tuple[Message, ...]) -> str:
    """16 hex digits of SHA-256 over the prompt."""
    value = prompt if isinstance(prompt, str) else [[message.role, message.content] for message in prompt]
    return sha256_bytes(canonical_json(value))[:16]


def to_candidates(planned: PlannedRequest, generated: Generated, labels: Sequence[str] = ()) -> list[Candidate]:
    """One candidate a completion, cleaned, in the order of the draws; none when the engine rejected the request."""
    draws = enumerate(generated.completions, planned.first_draw)
    return [_candidate(planned, draw, completion, labels) for draw, completion in draws]


def screen(
    planned: PlannedRequest, generated: Generated, limits: TextLimits, task: Task, min_mean_logprob: float | None = None
) -> list[Screened]:
    """The candidates of a request, each with the reason for which it is left out. Duplicates stay in."""
    candidates = to_candidates(planned, generated, task.names)
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


def _candidate(planned: PlannedRequest, draw: int, completion: Completion, labels: Sequence[str]) -> Candidate:
    return Candidate(
        id=candidate_id(planned.job, planned.augment_round, planned.parent, draw),
        text=clean_variant(completion.text, planned.style, labels=labels, separator=planned.separator),
        source="generated",
        intended=planned.label,
        parent=planned.parent,
        seed_ids=planned.seed_ids,
        augment_round=planned.augment_round,
        draw=draw,
        generator=planned.request.adapter or "",
        prompt_hash=planned.prompt_hash,
        sampling=planned.sampling,
        tokens=completion.tokens,
        mean_logprob=completion.mean_logprob,
    )


def _hash(*parts: object) -> int:
    """64 bits."""
    return int(sha256_bytes(canonical_json([str(part) for part in parts]))[:16], 16)

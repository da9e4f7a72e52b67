"""What a run will do and about how long it takes, before anything starts: the plan behind --dry-run.

What the numbers rest on
- Requests and prompts are those of the real augment plan; tokens are counted by the caller's tokenizer, or by an upper
  bound on characters where there is none.
- `candidates` is an upper bound: duplicates and malformed texts fall away later. Every text, generated, unlabelled or
  of the eval set, is taken to be as long as the mean seed. `selected` takes KEPT_SHARE of them where the label must be
  the intended one (with the 135M model trec kept 0.42, sst2 0.65), AGREED_SHARE where adapters and encoder must agree
  (trec: 0.76), and all otherwise, less what the caps cut. From it follow the augment rounds that a target needs beyond
  the planned ones, and training tokens where adapters do not learn from all that was scored.
- Rates of machines: `afdc_pipeline.rates`.
Expect a factor of two either way; no rate here is a promise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal

from afdc.config import RunConfig
from afdc.prompting import Message, system_prompt
from afdc.task import Task
from afdc_pipeline import growth
from afdc_pipeline.augment import estimate_tokens, plan_requests
from afdc_pipeline.learning import learns_from_all, name_rows
from afdc_pipeline.rates import Rates, rates_for
from afdc_pipeline.rows import Seed
from afdc_pipeline.stages.augment import pick_style
from afdc_pipeline.stages.average import sample_step

KEPT_SHARE, AGREED_SHARE = 0.45, 0.75
MARKUP_TOKENS = 12  # role markers around system, user and assistant
IDS_PER_READ = 128  # label tokens that one read can ask for
SAMPLED_PROMPTS = 256
PIECE = re.compile(r"[\W_]?[A-Za-z0-9]{1,8}|.", re.DOTALL)  # a word with what comes before it, or one character


@dataclass(frozen=True)
class PlanInputs:
    """What is planned.

    Attributes:
        parameters: of the base model.
        count_tokens: tokens of a text; the default is an upper bound that needs no tokenizer.
        label_paths: `PromptCodec.scored_ids`; without it, words of a label's name stand for its tokens.
    """

    task: Task
    seeds: Sequence[Seed]
    device: Literal["cpu", "cuda"]
    parameters: float
    eval_rows: int = 0
    unlabeled_rows: int = 0
    count_tokens: Callable[[str], int] = estimate_tokens
    label_paths: Sequence[tuple[int, ...]] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Counts, tokens and seconds of a run that goes through all its rounds (module docstring: what they rest on).

    Attributes:
        augment_rounds: passes over the seeds, those included that `select.target_rows` is expected to need.
        requests: generation requests; each has several draws.
        candidates: size of D1 at most, unlabelled texts included.
        selected: rows of D2 in a round, expected.
        adapters: training runs.
        score_reads: next-token reads, over all passes of all scorers over D1, eval and held-out texts; sampled answers
            where the task is open.
        prompt_tokens: of generation and scoring, prefix-cache hits included.
        completion_tokens: of generation, and of the answers of an open task.
        training_tokens: through the model, a shared template counted once a batch.
        seconds: by part, and "total".
        precision: numbers that engine and trainer compute in, where the planner knows them.
    """

    augment_rounds: int
    requests: int
    candidates: int
    selected: int
    adapters: int
    score_reads: int
    prompt_tokens: int
    completion_tokens: int
    training_tokens: int
    seconds: dict[str, float]
    precision: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Flat JSON form."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Mean tokens: the fixed part of a scoring prompt, a text, a label; and reads a text (open: sampled answers)."""

    template: float
    text: float
    label: float
    reads: int


def make_plan(config: RunConfig, inputs: PlanInputs) -> Plan:
    """Plan a run from its settings and inputs alone; starts and writes nothing."""
    sizes = _sizes(inputs, config.answer.samples)
    rates = rates_for(inputs.device, inputs.parameters)
    trained = [seed for seed in inputs.seeds if not seed.holdout]
    ceiling = growth.row_ceiling(config.select, inputs.task, len(trained), unlabeled=bool(inputs.unlabeled_rows))
    rounds = _augment_rounds(config, inputs, len(trained), ceiling)
    draws = rounds * len(trained) * config.augment.variants_of(len(trained))
    requests, generation_prompt = _generation(config, inputs, rounds)
    candidates = draws + inputs.unlabeled_rows
    selected = _selected(config, inputs.task, candidates, ceiling)
    scored = _scored_texts(config, inputs, candidates)
    learnt = candidates if learns_from_all(config, inputs.task) else selected
    adapters, training = _training(config, inputs, sizes, len(trained), learnt)
    processes = adapters + _averages(config, inputs)
    completion = round(draws * (sizes.text + 1))
    prompts = 1 if inputs.task.is_open else sizes.reads  # samples of a text share its prompt
    sampled = round(scored * sizes.reads * sizes.label) if inputs.task.is_open else 0
    computed = scored * (sizes.text + MARKUP_TOKENS / 2 if sampled else _computed_tokens(sizes, rates.block_size))
    seconds = {
        "engine_start": rates.engine_start_s,
        "generate": completion / rates.decode + generation_prompt / rates.prefill,
        "score": computed / rates.prefill + sampled / rates.decode,
        "train": training / rates.train + processes * rates.trainer_start_s,
        "encode": _encoding_seconds(config, inputs, rates, len(trained), selected, candidates),
    }
    return Plan(
        augment_rounds=rounds,
        requests=requests,
        candidates=candidates,
        selected=selected,
        adapters=adapters,
        score_reads=scored * sizes.reads,
        prompt_tokens=generation_prompt + round(scored * prompts * (sizes.template + sizes.text)),
        completion_tokens=completion + sampled,
        training_tokens=training,
        seconds={name: round(value, 1) for name, value in {**seconds, "total": sum(seconds.values())}.items()},
    )


def trie_reads(paths: Sequence[tuple[Any, ...]]) -> int:
    """Next-token reads that score all labels: inner nodes of their trie, a node of many children counted repeatedly."""
    children: dict[tuple[Any, ...], set[Any]] = {}
    for path in paths:
        for depth, token in enumerate(path):
            children.setdefault(path[:depth], set()).add(token)
    return sum(-(-len(tokens) // IDS_PER_READ) for tokens in children.values())


def _template(inputs: PlanInputs) -> float:
    return inputs.count_tokens(system_prompt(inputs.task)) + MARKUP_TOKENS


def _sizes(inputs: PlanInputs, samples: int) -> _Sizes:
    lengths = [inputs.count_tokens(seed.text) for seed in inputs.seeds] or [0]
    if inputs.task.is_open:
        answers = [inputs.count_tokens(seed.label) + 1 for seed in inputs.seeds] or [1]
        return _Sizes(_template(inputs), sum(lengths) / len(lengths), sum(answers) / len(answers), samples)
    paths: Sequence[tuple[Any, ...]] = inputs.label_paths or [_pieces(name) for name in inputs.task.names]
    return _Sizes(
        template=_template(inputs),
        text=sum(lengths) / len(lengths),
        label=sum(map(len, paths)) / len(paths) + 1,
        reads=trie_reads(paths),
    )


def _pieces(name: str) -> tuple[str, ...]:
    """Stand-ins for a label's tokens; on SmolLM2 they give 3 reads for trec (true: 3), 155 for banking77 (152)."""
    return tuple(PIECE.findall(name))


def _augment_rounds(config: RunConfig, inputs: PlanInputs, parents: int, ceiling: int | None) -> int:
    """The planned rounds and those that the expected yield leaves to the target; none beyond where caps rule it out."""
    rounds, target = config.augment.rounds, config.select.target_rows
    if target is None or rounds * parents == 0 or (ceiling is not None and ceiling < target):
        return rounds
    expected = partial(_expected, config, inputs.task)
    drawn, real = rounds * parents * config.augment.variants_of(parents), inputs.unlabeled_rows
    return rounds + growth.rounds_needed(target - expected(real), rounds, expected(drawn))


def _generation(config: RunConfig, inputs: PlanInputs, rounds: int) -> tuple[int, int]:
    """Number of requests and their prompt tokens, from the first round's real prompts (a sample of a long list)."""
    # No model is loaded for a plan: it is taken to have a chat template, as nearly all of the large ones do.
    style = pick_style(config.augment.prompt_style, chat=True, parameters=round(inputs.parameters))
    planned = plan_requests(inputs.seeds, inputs.task, config.augment, "plan", 1, config.seed, style)
    prompts = (one.request.prompt for one in planned)
    sample = [inputs.count_tokens(_plain(prompt)) for prompt in islice(prompts, SAMPLED_PROMPTS)]
    requests = rounds * len(planned)
    return requests, round(requests * sum(sample) / len(sample)) if sample else 0


def _plain(prompt: str | tuple[Message, ...]) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)


def _expected(config: RunConfig, task: Task, candidates: int) -> int:
    checked = config.encoder.labeller and not task.is_open
    if checked and config.select.unanimous:
        candidates = round(candidates * AGREED_SHARE)
    if config.select.agreement or (config.select.agreement is None and not checked):
        candidates = round(candidates * KEPT_SHARE)
    return candidates


def _selected(config: RunConfig, task: Task, candidates: int, ceiling: int | None) -> int:
    caps = [_expected(config, task, candidates), ceiling, config.select.target_rows]
    return min(cap for cap in caps if cap is not None)


def _scored_texts(config: RunConfig, inputs: PlanInputs, candidates: int) -> int:
    """Texts times the scorers that read them: each labeller reads D1; the base, round 0 and each round read eval."""
    held, folds = sum(seed.holdout for seed in inputs.seeds), fold_count(config, inputs.seeds)
    labellers = max(config.loop.members, 1) + config.loop.rounds + _fold_reads(config, inputs.task, folds)
    averaged = int(_averages(config, inputs) > 0)
    judged = 2 + config.loop.rounds + averaged
    crossed = len(inputs.seeds) * (judged - 1) if folds else 0  # each seed by the fold that left it out
    calibrated = folds and averaged and not (inputs.task.is_open or config.select.soft_targets)
    sampled = candidates // sample_step(candidates) if calibrated else 0
    return labellers * candidates + judged * inputs.eval_rows + (judged - 1) * held + crossed + sampled


def _fold_reads(config: RunConfig, task: Task, folds: int) -> int:
    """Times that the folds' adapters read D1: of a round all of it between them, and before the next round what each
    keeps, k - 1 times. Where an answer is free text each reads all of it once.
    """
    if not folds:
        return 0
    rounds = _fold_fits(config, folds) // folds
    return rounds * folds if task.is_open else rounds + max(rounds - 1, 0) * (folds - 1)


def _averages(config: RunConfig, inputs: PlanInputs) -> int:
    """Means of adapters: that of the rounds, and those of their folds, which score it. One round needs none."""
    return 1 + fold_count(config, inputs.seeds) if config.loop.average and config.loop.rounds > 1 else 0


def fold_count(config: RunConfig, seeds: Sequence[Seed]) -> int:
    """Folds of the seeds; 0 where other seeds gate the adapters or nothing can be left out."""
    held = any(seed.holdout for seed in seeds)
    return config.loop.folds if config.loop.folds > 1 and not held else 0


def _fold_fits(config: RunConfig, folds: int) -> int:
    """Adapters that leave a fold out: of every round, and of round 0 where it has adapters of its own."""
    return folds * (config.loop.rounds + int(config.loop.members > 0))


def _computed_tokens(sizes: _Sizes, block_size: int) -> float:
    """Tokens computed a text: template from the prefix cache, and for each further read half a block and its path."""
    return sizes.text + MARKUP_TOKENS / 2 + (sizes.reads - 1) * (block_size / 2 + sizes.label)


def _training(config: RunConfig, inputs: PlanInputs, sizes: _Sizes, seeds: int, learnt: int) -> tuple[int, int]:
    """Number of training runs and their tokens. Without members one seeds-only baseline is fitted where eval exists."""
    train, loop = config.train, config.loop
    members, folds = loop.members or int(inputs.eval_rows > 0), fold_count(config, inputs.seeds)
    beside = max(folds - 1, 0)  # k adapters, each on all but a k-th of the rows
    rows = (members + (beside if loop.members else 0)) * train.seed_epochs * seeds
    rows += (1 + beside) * loop.rounds * train.epochs * (train.seed_repeat * seeds + learnt)
    row_tokens = sizes.text + sizes.label + MARKUP_TOKENS / 2 + sizes.template / train.batch_size
    return members + loop.rounds + _fold_fits(config, folds), round(rows * row_tokens)


def _encoding_seconds(
    config: RunConfig, inputs: PlanInputs, rates: Rates, seeds: int, selected: int, candidates: int
) -> float:
    """Of the encoder: the rows it is tuned on, over all fits of all rounds, and the texts that it labels."""
    if inputs.task.is_open or not config.encoder.labeller:
        return 0.0
    encoder, rounds, folds = config.encoder, config.loop.rounds, fold_count(config, inputs.seeds)
    gold = config.train.seed_repeat
    rows = seeds * encoder.seed_epochs + rounds * encoder.epochs * (gold * seeds + selected)
    nested = folds if rounds else 0  # that of every fold labels what it keeps, by its seeds alone
    beside = max(nested - 1, 0)
    names = sum(1 for _ in name_rows(inputs.task, encoder.name_repeat))  # no fold leaves one out
    named = (1 + folds) * (encoder.seed_epochs + rounds * encoder.epochs * gold) + nested * encoder.seed_epochs
    tuned = rows * max(folds, 1) + beside * seeds * encoder.seed_epochs + names * named
    texts = (1 + rounds + beside) * candidates
    return tuned / rates.tune + texts / rates.read + (1 + rounds + nested) * rates.trainer_start_s

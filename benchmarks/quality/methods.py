"""The methods by name. Each runs on one Case and returns an Outcome."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from afdc_pipeline import metrics, scoring
from benchmarks.quality.afdc_method import run_afdc, run_augment_only
from benchmarks.quality.bench import Bench, Case, Outcome, hard_row, mean_outcome
from benchmarks.quality.contrastive import setfit_probs
from benchmarks.quality.encoder import head_probs
from benchmarks.quality.in_context import CONTENT_FREE, calibrate, few_shot_codec


async def zero_shot(bench: Bench, case: Case) -> Outcome:
    """The base model with the instruction alone."""
    return mean_outcome([await bench.probs(case.test_texts, case.task.task)], case)


async def few_shot(bench: Bench, case: Case) -> Outcome:
    """The base model with the seeds as earlier turns, as many as its context holds, calibrated without any label."""
    engine = await bench.plain_engine()
    codec, shown = few_shot_codec(engine.tokenizer, case.task.task, case.drawn.seeds, engine.info.max_model_len)
    probs = scoring.normalise(engine.score_prompts(case.test_texts, codec).logprobs)
    nothing = scoring.normalise(engine.score_prompts(CONTENT_FREE, codec).logprobs)
    raw = metrics.evaluate(probs, case.gold_labels).accuracy
    return mean_outcome([calibrate(probs, nothing)], case, {"shown": shown, "uncalibrated": raw})


async def seeds_only(bench: Bench, case: Case) -> Outcome:
    """LoRA on the seeds; the mean of several training seeds, since one moves the accuracy by several points."""
    return await _lora(bench, case, case.drawn.seeds, case.config.train.seed_epochs, bench.options.members)


async def gold(bench: Bench, case: Case) -> Outcome:
    """LoRA on many gold labels: the upper mark."""
    return await _lora(bench, case, case.drawn.gold, bench.options.gold_epochs, 1)


async def _lora(bench: Bench, case: Case, rows: tuple, epochs: int, members: int) -> Outcome:  # type: ignore[type-arg]
    task = case.task.task
    train = [hard_row(task, row) for row in rows]
    probs = []
    for member in range(members):
        seed = case.spec.draw * 1000 + member
        adapter = await bench.fit(task, train, case.config, case.folder, epochs, seed)
        probs.append(await bench.probs_of(adapter, case.test_texts, task))
    together = metrics.evaluate(sum(probs[1:], probs[0]) / len(probs), case.gold_labels).accuracy
    return mean_outcome(probs, case, {"rows": len(train), "averaged": together})


async def afdc(bench: Bench, case: Case) -> Outcome:
    """AFDC with the settings of the case, from the seeds alone."""
    return await run_afdc(bench, case)


async def afdc_unlabeled(bench: Bench, case: Case) -> Outcome:
    """AFDC with real texts whose labels it does not see."""
    return await run_afdc(bench, case, case.drawn.unlabeled)


async def encoder(bench: Bench, case: Case) -> Outcome:
    """A sentence encoder as it is, with logistic regression on the seeds."""
    names, seeds = case.task.task.names, case.drawn.seeds
    vectors = bench.encoder.encode([row.text for row in seeds])
    labels = [names.index(row.label or "") for row in seeds]
    return mean_outcome([head_probs(vectors, labels, bench.encoder.encode(case.test_texts), len(names))], case)


async def setfit(bench: Bench, case: Case) -> Outcome:
    """The sentence encoder tuned on pairs of seeds, with a linear head."""
    names, device = case.task.task.names, bench.info.device
    probs = setfit_probs(case.drawn.seeds, names, case.test_texts, case.spec.draw, case.folder, device)
    return mean_outcome([probs], case)


@dataclass(frozen=True)
class Method:
    """A line of the table.

    Attributes:
        preset: whose settings it trains with.
        loop: it runs the product's loop, so that its results depend on the loop's code and all settings.
        trains: it trains an adapter, so that its results depend on the trainer's code and settings.
    """

    title: str
    run: Callable[[Bench, Case], Awaitable[Outcome]]
    preset: str = "default"
    loop: bool = False
    trains: bool = False


METHODS: dict[str, Method] = {
    "zero-shot": Method("zero-shot", zero_shot),
    "few-shot": Method("few-shot in context", few_shot),
    "seeds-only": Method("LoRA on the seeds", seeds_only, trains=True),
    "augment": Method("augmentation without selection", run_augment_only, loop=True),
    "paper": Method("AFDC paper", afdc, preset="paper", loop=True),
    "default": Method("AFDC default", afdc, loop=True),
    "unlabeled": Method("AFDC default + unlabelled texts", afdc_unlabeled, loop=True),
    "encoder": Method("MiniLM + linear head", encoder),
    "setfit": Method("SetFit", setfit),
    "gold": Method("LoRA on gold labels", gold, trains=True),
}

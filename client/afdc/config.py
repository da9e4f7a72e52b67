"""Every setting of a job, with its default and its unit.

`afdc.presets` builds one from a preset, a file (`afdc.toml`, YAML) and flags, each overriding the one before.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from afdc.engine_config import Device as Device
from afdc.engine_config import EngineConfig
from afdc.tables import SettingsTable

PromptStyle = Literal["auto", "continuation", "chat"]
Strategy = Literal["confidence", "least_confidence", "margin", "entropy", "committee", "diversity"]
DType = Literal["auto", "bfloat16", "float32"]
Preset = Literal["default", "paper"]

MAX_ROWS = 1_000_000_000
POOL_DRAWS, MIN_VARIANTS, MAX_VARIANTS = 1000, 6, 64


class AugmentConfig(SettingsTable):
    """Generation of variants x~ ~ M(x | x_i, y_i)."""

    rounds: int = Field(default=1, ge=0, le=10_000, description="R: passes over the seeds")
    variants: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="K: variants a seed and round; None: so many that all seeds have about 1,000, from 6 to 64",
    )
    context_seeds: int = Field(
        default=5, ge=1, le=100, description="same-label seeds shown in a prompt, the parent last"
    )
    prompt_style: PromptStyle = Field(
        default="auto", description="list of examples to continue, or chat instruction; auto: by the model's size"
    )
    temperature: float = Field(default=1.0, gt=0, le=10, description="sampling temperature")
    top_p: float = Field(default=0.95, gt=0, le=1, description="nucleus sampling: probability mass that is kept")
    max_tokens: int | None = Field(
        default=None, ge=4, le=1 << 17, description="None: twice the longest seed, at least 24"
    )
    near_duplicate: float = Field(
        default=0.85, gt=0, le=1, description="character-shingle Jaccard at which two texts count as one"
    )
    min_mean_logprob: float | None = Field(
        default=None, le=0, description="drop variants the generator itself finds less likely, nats a token"
    )

    def variants_of(self, seeds: int) -> int:
        """K for so many seeds: what was asked for, or a pool of a similar size whether seeds are few or many."""
        return self.variants or min(max(-(-POOL_DRAWS // max(seeds, 1)), MIN_VARIANTS), MAX_VARIANTS)


class AnswerConfig(SettingsTable):
    """Open tasks only: how answers are sampled and compared."""

    samples: int = Field(default=4, ge=1, le=256, description="n: answers a text and labeller")
    temperature: float = Field(default=0.7, gt=0, le=10, description="sampling temperature")
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus sampling: probability mass that is kept")
    max_tokens: int | None = Field(
        default=None, ge=4, le=1 << 17, description="longest answer; None: twice the longest of the seeds, at least 16"
    )
    min_agreement: float = Field(
        default=0.5, ge=0, le=1, description="with select.agreement: keep texts whose samples agree this far"
    )


class SelectConfig(SettingsTable):
    """Which scored candidates become training rows (D2)."""

    strategy: Strategy = Field(default="confidence", description="which rows are the most valuable")
    threshold: float = Field(default=0.0, ge=0, le=1, description="tau: keep rows with confidence > tau")
    agreement: bool | None = Field(
        default=None,
        description="keep a generated row only where the scored label is the intended one; open: where samples agree; "
        "None: where no encoder checks the label",
    )
    unanimous: bool = Field(
        default=True, description="keep a row only where adapters and encoder, each for itself, give it the same label"
    )
    trust: bool = Field(
        default=True,
        description="leave as large a share of the rows, the least confident, out of the data set as the adapter gets "
        "wrong of the seeds that it did not see; needs loop.folds or loop.holdout, and no target_rows",
    )
    precision: float = Field(
        default=0.95,
        ge=0,
        le=1,
        description="with trust: wanted mean confidence of the data set's rows, the share of right labels that "
        "calibrated labellers expect; up to half of the rows fall away for it; 0: none; not for open tasks",
    )
    out_of_sample: bool = Field(
        default=True, description="a labeller has no say on a row that it was trained on, where another has one"
    )
    combine: bool = Field(
        default=False,
        description="label a generated text by the product of its scores and the label it was written for, "
        "which is trusted as far as the two agree over the pool",
    )
    balance: bool = Field(default=False, description="cap labels at the geometric mean of their counts")
    per_label: int | None = Field(
        default=None, ge=1, le=MAX_ROWS, description="cap a label; None: no cap beyond balance"
    )
    per_seed: int | None = Field(default=None, ge=1, le=MAX_ROWS, description="cap for the variants of one seed")
    target_rows: int | None = Field(
        default=None,
        ge=1,
        le=MAX_ROWS,
        description="rows wanted in D2: no more, and more augment rounds where they fall short",
    )
    align: bool = Field(
        default=False, description="divide out the labeller's prior so that its mean prediction matches the target mix"
    )
    soft_targets: bool = Field(
        default=False,
        description="train on the labellers' distribution instead of its argmax; not for open tasks",
    )
    weighted: bool = Field(default=False, description="weight a row by its confidence")


class TrainConfig(SettingsTable):
    """One LoRA round."""

    rank: Literal[1, 8, 16, 32, 64, 128] = Field(default=16, description="LoRA rank r")
    alpha: int = Field(default=32, ge=1, le=4096, description="LoRA alpha: the update is scaled by alpha / r")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="LoRA dropout")
    rslora: bool = Field(default=False, description="scale by alpha / sqrt(r) instead")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="peak learning rate")
    seed_epochs: int = Field(default=10, ge=1, le=10_000, description="epochs of round 0, over the seeds alone")
    epochs: int = Field(default=2, ge=1, le=10_000, description="epochs of a later round, over seeds and selected rows")
    all_rows: bool | None = Field(
        default=None,
        description="with select.soft_targets: learn from every scored row, also from those that the selection leaves "
        "out of the data set; None: where an encoder labels beside the adapters; not for open tasks",
    )
    seed_repeat: int = Field(
        default=3, ge=1, le=1000, description="times each seed appears in an epoch of a later round"
    )
    batch_size: int = Field(default=16, ge=1, le=1 << 16, description="rows an optimiser step")
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the steps with rising learning rate")
    weight_decay: float = Field(default=0.0, ge=0, le=100, description="AdamW weight decay")
    contrastive: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="weight of the supervised contrastive loss, which pulls texts of one label together; 0: none",
    )
    contrastive_temperature: float = Field(
        default=0.1, gt=0, le=10, description="its temperature: lower values look at the nearest texts"
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of each label token's target spread over the vocabulary"
    )
    dtype: DType = Field(default="auto", description="numbers of the frozen base model")
    device: Device = Field(default="auto", description="where the trainer runs")
    continue_adapter: bool = Field(default=False, description="start from the last round's adapter, not from the base")
    checkpoint_every: int = Field(
        default=25, ge=1, le=1_000_000, description="optimiser steps between resumable checkpoints"
    )


class EncoderConfig(SettingsTable):
    """A sentence encoder that labels beside the adapters. Tasks with labels only."""

    labeller: bool = Field(
        default=True, description="tune a sentence encoder on the same rows: half of the say on every text is its own"
    )
    compare_untuned: bool = Field(default=True, description="do not tune it where that tells seeds left out better")
    name_repeat: int = Field(
        default=3,
        ge=0,
        le=1000,
        description="times each label's name, with its description, is learnt as a seed of the label, where names tell "
        "something; 0: never",
    )
    model: str = Field(
        default="", description="encoder: a folder or a hub id; empty: the packaged all-MiniLM-L6-v2 (English)"
    )
    seed_epochs: int = Field(default=20, ge=1, le=10_000, description="epochs of round 0, over the seeds alone")
    epochs: int = Field(default=3, ge=1, le=10_000, description="epochs of a later round")
    batch_size: int = Field(default=32, ge=2, le=1 << 16, description="rows an optimiser step")
    learning_rate: float = Field(default=1e-4, gt=0, le=1, description="peak learning rate")
    temperature: float = Field(
        default=0.1, gt=0, le=10, description="of the contrastive loss: lower values look at the nearest texts"
    )
    max_tokens: int = Field(default=256, ge=8, le=8192, description="texts are cut behind so many tokens")
    device: Device = Field(default="auto", description="where the encoder runs")


class LoopConfig(SettingsTable):
    """Self-training rounds and when to stop."""

    rounds: int = Field(default=2, ge=0, le=1000, description="T: fine-tune, swap, relabel")
    members: int = Field(
        default=3,
        ge=0,
        le=64,
        description="seeds-only adapters (round 0); 0: the base model scores first, as in the paper",
    )
    ensemble: bool = Field(
        default=True, description="label with the mean of all adapters so far, not with the last alone"
    )
    average: bool = Field(
        default=True, description="hand out the mean of the weights of the rounds' adapters, not the last alone"
    )
    holdout: float = Field(
        default=0.0, ge=0, lt=0.5, description="share of each label's seeds kept out of training to gate adapters"
    )
    folds: int = Field(
        default=2,
        ge=0,
        le=32,
        description="k: adapters a round that each leave a fold of the seeds out, to gate and calibrate the round's; "
        "0 or 1: none; not used where loop.holdout keeps seeds out",
    )
    patience: int = Field(default=2, ge=1, le=1000, description="rounds without gain on held-out gold before stopping")
    min_flip_rate: float = Field(
        default=0.1, ge=0, le=1, description="epsilon: stop when a smaller share of the labels changes; 0 is off"
    )
    token_budget: int | None = Field(
        default=None, ge=1, le=1 << 62, description="stop before the next round once this many tokens are spent"
    )
    time_budget_s: float | None = Field(
        default=None, gt=0, le=1e9, description="stop before the next round after this many seconds"
    )


class RunConfig(SettingsTable):
    """A whole job. `seed` fixes every random choice that is ours to make."""

    preset: Preset = Field(default="default", description="set of defaults, see above")
    model: str = Field(default="", description="base model: a folder or a hub id; empty: the default of the device")
    seed: int = Field(default=0, ge=0, lt=2**31, description="fixes every random choice")
    engine: EngineConfig = EngineConfig()
    augment: AugmentConfig = AugmentConfig()
    answer: AnswerConfig = AnswerConfig()
    select: SelectConfig = SelectConfig()
    train: TrainConfig = TrainConfig()
    encoder: EncoderConfig = EncoderConfig()
    loop: LoopConfig = LoopConfig()

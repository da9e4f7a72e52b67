"""Where the loop stands: its pool, its labellers, and what each round left."""

from __future__ import annotations

from dataclasses import dataclass, field

from afdc.result import EvalSummary, Evaluation, RoundResult
from afdc_pipeline.holdout import Fold
from afdc_pipeline.pool import Pool
from afdc_pipeline.seams import StageKey
from afdc_pipeline.stages.augment import SeenTexts
from afdc_pipeline.stages.average import Trained
from afdc_pipeline.stages.decide import Decisions
from afdc_pipeline.stages.encode import Encoded
from afdc_pipeline.stages.reading import Scorer

BASE = Scorer("base")


@dataclass(frozen=True)
class ScoredPool:
    """What a labeller has scored: the stages that hold its log-probs, and how many chunks of the pool they cover."""

    keys: tuple[StageKey, ...]
    chunks: int


@dataclass
class LoopState:
    """Where the loop stands. `best` is M* so far; `labellers` are those whose mean labels D1."""

    pool: Pool
    seen: SeenTexts
    labellers: list[Scorer] = field(default_factory=list)
    fold_labellers: dict[Fold, list[Scorer]] = field(default_factory=dict)
    """Who labels what a fold keeps, for its own next adapter. None of them was trained on its held seeds."""
    scored: dict[str, ScoredPool] = field(default_factory=dict)
    best: Scorer = BASE
    best_holdout: Evaluation | None = None
    """Of M* so far, on gold that it has not seen."""
    best_eval: Evaluation | None = None
    """Of M* so far, on --eval."""
    trained: list[Trained] = field(default_factory=list)
    """The rounds' own adapters, in the order of the rounds."""
    history: list[RoundResult] = field(default_factory=list)
    decisions: list[Decisions] = field(default_factory=list)
    encoders: dict[int, Encoded] = field(default_factory=dict)
    """What the encoder of each round has said last."""
    eval: EvalSummary = field(default_factory=EvalSummary)
    stop_reason: str = ""
    extra: int = 0
    """Augment rounds that were drawn beyond the plan, to reach the target."""
    first_selected: int | None = None
    """Drawn rows of D2 when the target was first missed: the yield of the plan."""

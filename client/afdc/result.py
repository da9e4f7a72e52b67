"""`result.json`: the numbers of a finished (or interrupted) run. docs/outputs.md holds its JSON schema."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Kept(BaseModel):
    """Written by one version and perhaps read by an older one, which passes over what it does not know."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Evaluation(Kept):
    """Against gold labels. All shares are in 0..1."""

    accuracy: float
    n: int
    macro_f1: float | None = None
    ece: float | None = Field(
        default=None, description="expected calibration error, 15 equal-width bins (Guo et al. 2017)"
    )
    token_f1: float | None = Field(
        default=None, description="open tasks: mean token F1; accuracy is then the share of exact matches"
    )
    log_loss: float | None = Field(
        default=None,
        description="mean negative log-likelihood of the gold labels in nats, at the temperature that suits these "
        "rows best, so that it says how well labels are told and not how sure; adapters are compared by it",
    )

    @property
    def score(self) -> float:
        """What is told of an adapter: token F1 where there is one, else accuracy."""
        return self.accuracy if self.token_f1 is None else self.token_f1


class RoundResult(Kept):
    """One row of the table by round. Round 0 is before self-training."""

    round: int
    candidates: int
    selected: int
    per_label: dict[str, int] = Field(default_factory=dict)
    flip_rate: float | None = Field(default=None, description="share of D1 whose label changed since the last round")
    agreement: float | None = Field(
        default=None,
        description="share of generated rows scored as the label they were generated for; open tasks: mean agreement",
    )
    mean_confidence: float | None = None
    holdout: Evaluation | None = None
    encoder: Evaluation | None = Field(
        default=None, description="the round's encoder on the seeds, each by a fit that did not see it"
    )
    encoder_tuned: bool | None = Field(
        default=None, description="false: as it is, with a head: it tells the seeds better so than tuned"
    )
    eval: Evaluation | None = None
    adapter: str = ""
    activated: bool = True
    note: str = ""
    seconds: dict[str, float] = Field(default_factory=dict)


class TokenF1(Kept):
    """Mean token F1 on --eval of an open task, as in EvalSummary."""

    base: float | None = None
    seeds_only: float | None = None
    final: float | None = None


class EvalSummary(Kept):
    """Accuracy on --eval; null without it. `seeds_only`: mean over the adapters of round 0, all trained on D0 alone.

    Of an open task it is the share of exact matches, and `token_f1` is there too.
    """

    base: float | None = None
    seeds_only: float | None = None
    final: float | None = None
    n: int = 0
    token_f1: TokenF1 | None = None


class PathRows(Kept):
    rows: int
    path: str


class AdapterRef(Kept):
    path: str
    name: str


class Usage(Kept):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = Field(default=0, description="prompt tokens answered from the prefix cache")
    engine_seconds: float = 0.0
    trainer_seconds: float = 0.0
    encoder_seconds: float = 0.0
    startup_seconds: float = 0.0
    wall_seconds: float = 0.0


class RunResult(Kept):
    status: Literal["succeeded", "interrupted", "failed"]
    job: str
    model: str
    model_revision: str = ""
    preset: str
    config_hash: str
    seeds: int
    labels: list[str]
    rounds: list[RoundResult] = Field(default_factory=list)
    stop_reason: str = ""
    eval: EvalSummary = EvalSummary()
    dropped: dict[str, int] = Field(default={}, description="why generated texts were left out, counted")
    dataset: PathRows | None = None
    adapter: AdapterRef | None = None
    advice: list[str] = Field(default_factory=list, description="what these numbers tell the owner of the run to do")
    usage: Usage = Usage()
    error: str = ""


class LabelScore(Kept):
    """One line of the per-label table of `afdc eval`. `support`: gold examples with the label."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


class ReliabilityPoint(Kept):
    """Examples whose confidence is in (low, high]; the means are null in an empty bin."""

    low: float
    high: float
    count: int
    confidence: float | None = None
    accuracy: float | None = None


class EvalReport(Evaluation):
    """What `afdc eval --json` prints. `interval`: 95 % Wilson score interval of the accuracy."""

    model: str
    errors: int = Field(default=0, description="texts that could not be scored; they count as wrong")
    interval: tuple[float, float]
    labels: list[LabelScore] = Field(default_factory=list)
    reliability: list[ReliabilityPoint] = Field(default_factory=list)

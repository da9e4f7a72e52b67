"""What the server's replies hold, as far as it is read here. Further fields come and go with vLLM's versions."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from afdc.errors import EngineError

T = TypeVar("T", bound="Part")


class Part(BaseModel):
    """Outside data of which only a part is ours to check."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class ModelCard(Part):
    """One entry of /v1/models: the base model, or an adapter, whose `parent` is the base model."""

    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class ModelList(Part):
    """/v1/models."""

    data: tuple[ModelCard, ...]


class PromptDetails(Part):
    cached_tokens: int | None = None


class TokenUsage(Part):
    """`prompt_tokens_details` is there when the server runs with --enable-prompt-tokens-details."""

    prompt_tokens_details: PromptDetails | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the prefix cache, as far as the server says."""
        return (self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0


class DrawnLogprobs(Part):
    token_logprobs: tuple[float, ...]


class DrawnChoice(Part):
    text: str
    finish_reason: str | None = None
    logprobs: DrawnLogprobs


class DrawnReply(Part):
    """/v1/completions with `logprobs: 0`."""

    choices: tuple[DrawnChoice, ...]
    usage: TokenUsage = TokenUsage()


class ReadLogprobs(Part):
    """`top_logprobs`: one mapping a position, "token_id:N" -> log-prob."""

    top_logprobs: tuple[dict[str, float], ...] = Field(min_length=1)


class ReadChoice(Part):
    logprobs: ReadLogprobs


class ReadReply(Part):
    """/v1/completions of one token each with `logprob_token_ids`; choices in the order of the prompts."""

    choices: tuple[ReadChoice, ...]
    usage: TokenUsage = TokenUsage()


class TokenizeReply(Part):
    """/tokenize."""

    tokens: tuple[int, ...]


class VersionReply(Part):
    """/version."""

    version: str


def parse(kind: type[T], content: bytes, what: str) -> T:
    """Read a reply.

    Raises:
        EngineError: it is not of this kind, so that the other side is no vLLM, or one of another age.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as exc:
        fault = exc.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise EngineError(
            f"{what} answered with something unexpected: {where}: {fault['msg']}",
            remedy="Is it a `vllm serve` of 0.26 or later?",
        ) from exc

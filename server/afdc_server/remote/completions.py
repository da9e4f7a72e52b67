"""Bodies of /v1/completions and what their replies say, as pure functions.

Facts about vLLM that this relies on (0.32, entrypoints/openai/completion; tests/remote/test_real_server.py): a prompt
of token ids is taken as it is; `logprob_token_ids` with `logprobs` gives raw log-probs of those ids over the full
vocabulary, as "token_id:N"; what is left out comes from the model's generation_config.json, so that all is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from afdc.errors import EngineDiedError, EngineError
from afdc_pipeline.seams import Completion, Sampling
from afdc_server.engine.backend import ReadAnswer
from afdc_server.remote.replies import DrawnChoice, ReadReply, parse

COMPLETIONS = "/v1/completions"
NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
NO_PROBABILITY = -9999.0  # how the API writes minus infinity, which JSON has not


def read_body(model: str, prompts: list[list[int]], ids: tuple[int, ...], temperature: float = 0.0) -> dict[str, Any]:
    """One token for each prompt, with the log-probs of `ids` (at most 128) in place of the likeliest ones."""
    return {
        **NEUTRAL,
        "model": model,
        "prompt": prompts,
        "max_tokens": 1,
        "temperature": temperature,
        "logprobs": len(ids),
        "logprob_token_ids": list(ids),
        "return_tokens_as_token_ids": True,
    }


def read_answers(content: bytes, wanted: Sequence[tuple[int, ...]], url: str) -> list[ReadAnswer]:
    """Each read's own ids out of its choice; the server counts cached tokens for the last prompt of a request alone.

    Raises:
        EngineError: the server does not know how to answer that.
    """
    reply = parse(ReadReply, content, url)
    if len(reply.choices) != len(wanted):
        raise EngineDiedError(f"{url} answered {len(reply.choices)} of {len(wanted)} reads")
    rows = [choice.logprobs.top_logprobs[0] for choice in reply.choices]
    try:
        values = [
            tuple(_logprob(row[f"token_id:{token}"]) for token in ids) for row, ids in zip(rows, wanted, strict=True)
        ]
    except KeyError as exc:
        raise EngineError(
            f"{url} does not answer with the log-probability of a token that it is asked for ({exc.args[0]})",
            remedy="It needs a vLLM whose /v1/completions knows logprob_token_ids",
        ) from exc
    cached = [0] * (len(values) - 1) + [reply.usage.cached_tokens]
    return [ReadAnswer(row, count) for row, count in zip(values, cached, strict=True)]


def _logprob(value: float) -> float:
    return value if value > NO_PROBABILITY else float("-inf")


def draw_body(model: str, prompt: Sequence[int], n: int, sampling: Sampling, ends: Sequence[int]) -> dict[str, Any]:
    """n continuations of one prompt. `ends`: ids that end one, beside those that the model itself names."""
    body = {
        **NEUTRAL,
        "model": model,
        "prompt": list(prompt),
        "n": n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "logprobs": 0,
    }
    optional = {"seed": sampling.seed, "stop": list(sampling.stop) or None, "stop_token_ids": list(ends) or None}
    return body | {name: value for name, value in optional.items() if value is not None}


def completion(choice: DrawnChoice) -> Completion:
    """Our form of a continuation. Raises EngineDiedError when it was broken off."""
    if choice.finish_reason not in ("stop", "length"):  # "abort": the server is going down
        raise EngineDiedError(f"the server broke a text off ({choice.finish_reason})")
    values = choice.logprobs.token_logprobs
    return Completion(
        text=choice.text,
        tokens=len(values),
        finished=choice.finish_reason == "stop",
        mean_logprob=sum(values) / len(values) if values else None,
    )

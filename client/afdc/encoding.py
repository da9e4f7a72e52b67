"""What goes into the encoder process and what comes out of it.

The encoder is a sentence encoder that is tuned on a round's rows and labels texts beside the adapters. It is never
served and never handed out, so nothing of it is kept but what it says: a job is a folder with `job.json`, rows and
texts in, and an array of label log-probabilities out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from afdc.config import EncoderConfig
from afdc.files import canonical_json, sha256_bytes, sha256_file
from afdc.task import Model


class EncoderFit(Model):
    """One fit: rows to learn from, and texts to label with what was learnt."""

    rows: Path = Field(description="lines of `afdc.training.TrainRow` with targets")
    texts: Path = Field(description="a JSON string a line")
    scores: Path = Field(description="where the log-probs appear: .npy, float32 [n_texts, n_labels], nats")
    epochs: int = Field(ge=0, description="0: not tuned; only the head learns from the rows")
    gold_repeat: int = Field(default=1, ge=1, description="times each gold row appears in an epoch")
    seed: int


class EncoderJob(Model):
    """`job.json`: all that one process needs; paths are absolute."""

    name: str
    encoder: Path = Field(description="folder of the untuned encoder: config, tokenizer, safetensors")
    revision: str = Field(description="changes whenever the encoder's weights do")
    labels: int = Field(ge=1, description="number of labels of the task")
    config: EncoderConfig
    fits: tuple[EncoderFit, ...]
    result: Path = Field(description="where result.json appears last of all")


class EncoderResult(Model):
    """`result.json`."""

    status: Literal["succeeded", "failed"]
    inputs: str = Field(default="", description="`encoding_digest` of the job that it is the result of")
    scores: dict[str, str] = Field(default={}, description="SHA-256 of each scores file, by its name")
    error: str = ""
    seconds: float = 0.0


def encoding_digest(job: EncoderJob) -> str:
    """Hex SHA-256 over the job and over the content of its rows and texts.

    Raises:
        FileNotFoundError: one of them is missing.
    """
    files = [[sha256_file(fit.rows), sha256_file(fit.texts)] for fit in job.fits]
    return sha256_bytes(canonical_json([job.model_dump(mode="json"), files]))


def finished_encoding(job: EncoderJob) -> EncoderResult | None:
    """The result of this very job over the files that lie there now, its scores intact; else None."""
    try:
        result = EncoderResult.model_validate_json(job.result.read_bytes())
        if result.status != "succeeded" or result.inputs != encoding_digest(job):
            return None
        intact = all(sha256_file(fit.scores) == result.scores.get(fit.scores.name) for fit in job.fits)
    except (FileNotFoundError, ValidationError):
        return None
    return result if intact else None

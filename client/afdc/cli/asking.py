"""`afdc predict --job` and `--server`: the answers of an adapter on a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from afdc.cli.connect import ServerFlags, connect
from afdc.cli.labelling import LabellerFlags, print_records, read_texts
from afdc.errors import UsageError
from afdc.wire.models import Prediction


def predict_remotely(
    flags: LabellerFlags, job: str | None, server: str | None, texts: Sequence[str], *, as_json: bool
) -> None:
    """Body of `afdc predict` where a server is asked; prints what it prints otherwise.

    Raises:
        UsageError: neither a job nor an adapter is named, or both, or an option that only works here.
    """
    local = {"--task": flags.task, "--model": flags.model, "--set": flags.assignments}
    given = next((name for name, value in local.items() if value), None)
    if given is not None:
        raise UsageError(f"{given} has no meaning on a server", remedy="The adapter there has a task and a model")
    adapter = str(flags.adapter) if flags.adapter is not None else None
    if (job is None) == (adapter is None):
        raise UsageError("name who answers", remedy="Either with --job JOB, or with --adapter and the id of an adapter")
    wanted = read_texts(texts)
    with connect(ServerFlags(server, flags.config)) as client:
        found = client.predict(wanted, job=job, adapter=adapter)
    print_records([record_of(one) for one in found], as_json=as_json)


def record_of(found: Prediction) -> dict[str, Any]:
    """As local prediction has it: with an error, with the labels' distribution, or with the answer of an open task."""
    if found.error is not None:
        return {"text": found.text, "error": found.error}
    if not found.probs:
        return {"text": found.text, "answer": found.label or "", "confidence": found.confidence or 0.0}
    names = ("text", "label", "confidence", "probs", "label_logprobs")
    return {name: getattr(found, name) for name in names}

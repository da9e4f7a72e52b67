"""`--dry-run`: the plan of a run, without starting or downloading anything."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

from afdc.config import RunConfig
from afdc.inputs import iter_texts
from afdc.precision import plan_precision
from afdc_pipeline.estimate import Plan, PlanInputs, make_plan
from afdc_server.gpu import compute_capability
from afdc_server.local.request import CheckedRequest
from afdc_server.models import DEFAULT_MODEL, Device, ModelRef

SIZE_IN_NAME = re.compile(r"(\d+(?:\.\d+)?)\s*([BM])(?![A-Za-z])", re.IGNORECASE)
DEFAULT_PARAMETERS = {"cpu": 135e6, "cuda": 4e9}


def plan_request(checked: CheckedRequest, config: RunConfig, device: Device, model: ModelRef | None) -> Plan:
    """Counts, tokens and seconds of the run; `model` is None where it would have to be fetched."""
    unlabeled = sum(1 for _ in iter_texts(checked.unlabeled)) if checked.unlabeled else 0
    inputs = PlanInputs(
        task=checked.task,
        seeds=checked.seeds,
        device=device,
        parameters=model.parameters if model else guess_parameters(config.model, device),
        eval_rows=len(checked.eval),
        unlabeled_rows=unlabeled,
    )
    plan = make_plan(config, inputs)
    if device == "cpu":  # the trainer looks at the processor when it starts
        return plan
    return replace(plan, precision=plan_precision(config.engine.dtype, config.train.dtype, compute_capability()))


def describe_inputs(checked: CheckedRequest, config: RunConfig, device: Device) -> dict[str, Any]:
    """What was read of the user's files, and the model and device that were settled."""
    counts = Counter(seed.label for seed in checked.seeds)
    per_label = {} if checked.task.is_open else {name: counts[name] for name in checked.task.names}
    return {
        "model": config.model or DEFAULT_MODEL[device],
        "device": device,
        "instruction": checked.task.instruction,
        "labels": len(checked.task.names),
        "seeds": len(checked.seeds),
        "seeds_per_label": per_label,
        "held_out_seeds": sum(seed.holdout for seed in checked.seeds),
        "repeated_seeds_dropped": checked.duplicates,
        "eval_rows": len(checked.eval),
    }


def guess_parameters(name: str, device: Device) -> float:
    """What the name of a model says of its size, so that a plan downloads nothing."""
    found = SIZE_IN_NAME.search(name)
    if not found:
        return DEFAULT_PARAMETERS[device]
    return float(found[1]) * (1e9 if found[2].upper() == "B" else 1e6)

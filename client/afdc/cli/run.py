"""`afdc run`: settle the settings, hand the job over, show what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afdc.cli.output import data_console, load_server, message_console, print_json
from afdc.cli.progress import LiveProgress
from afdc.cli.summary import print_plan, print_result
from afdc.errors import AfdcError, UsageError
from afdc.result import RunResult
from afdc.settings import Layer, Location, Settings, load_settings

OPTION_KEYS: dict[str, Location] = {
    "--preset": ("preset",),
    "--model": ("model",),
    "--rounds": ("loop", "rounds"),
    "--augment-rounds": ("augment", "rounds"),
    "--variants": ("augment", "variants"),
    "--threshold": ("select", "threshold"),
    "--strategy": ("select", "strategy"),
    "--target-rows": ("select", "target_rows"),
    "--seed": ("seed",),
}


@dataclass(frozen=True)
class RunFlags:
    """The command line: None is a flag that was not given."""

    paths: Mapping[str, Path | None]
    options: Mapping[str, Any]
    config: Path | None = None
    assignments: tuple[str, ...] = ()

    def layer(self) -> Layer:
        """As the uppermost layer of settings."""
        values: dict[str, Any] = {}
        for flag, value in self.options.items():
            if value is not None:
                *parents, key = OPTION_KEYS[flag]
                target = values
                for part in parents:
                    target = target.setdefault(part, {})
                target[key] = value
        names = {location: flag for flag, location in OPTION_KEYS.items()}
        paths = {key: path for key, path in self.paths.items() if path is not None}
        return Layer(values, lambda location: names.get(location, ".".join(location)), paths)


def run_command(flags: RunFlags, *, dry_run: bool, as_json: bool) -> None:
    """Body of `afdc run`.

    Raises:
        AfdcError: the job did not come to its end; its exit code says why.
    """
    settings = load_settings(flags.layer(), flags.assignments, flags.config)
    local = load_server("afdc_server.local")
    request = _request(local, settings, dry_run)
    if dry_run:
        _show_plan(local, request, settings, as_json)
        return
    with LiveProgress(message_console()) as progress:
        result = local.run_local(request, progress)
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        print_result(data_console(), result, request.out)
    _check_status(result)


def _request(local: Any, settings: Settings, dry_run: bool) -> Any:
    paths = settings.paths
    missing = [f"--{key}" for key in ("seeds", "out") if key not in paths]
    if missing:
        raise UsageError(f"{' and '.join(missing)} missing", remedy="For example: afdc run --seeds S.jsonl --out DIR")
    return local.RunRequest(
        seeds=paths["seeds"],
        out=paths["out"],
        config=settings.config,
        task=paths.get("task"),
        eval=paths.get("eval"),
        unlabeled=paths.get("unlabeled"),
        dry_run=dry_run,
    )


def _show_plan(local: Any, request: Any, settings: Settings, as_json: bool) -> None:
    planned, inputs = local.plan_local(request)
    plan, config = planned.to_dict(), settings.config.model_dump(mode="json")
    if as_json:
        print_json({"inputs": inputs, "plan": plan, "config": config})
    else:
        print_plan(data_console(), inputs, plan, config)


def _check_status(result: RunResult) -> None:
    if result.status != "succeeded":
        raise AfdcError(result.error or f"the run ended as {result.status}")

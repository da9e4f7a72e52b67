"""The whole OpenAPI document against a running server: valid and broken requests, and calls one after the other.

The file is also the module of hooks that schemathesis loads in its own process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import schemathesis

from tests.service.world import World, finished, post_job, post_seeds

ROOT = Path(__file__).parents[2]
EXAMPLES = 8
UNLIKELY = ["seeds", "jobs", "predict", "generate", "score", "datasets"]
"""Bodies that follow the schema and still make no sense: a task without seeds, settings that contradict each other."""
LONGEST_QUERY = 60_000
CONFIG = f"""
[generation]
max-examples = {EXAMPLES}
no-shrink = true
with-security-parameters = true

[checks.object_level_authorization]
enabled = false

[phases.stateful]
max-steps = 8

[phases.stateful.generation]
max-examples = 20

[[operations]]
include-path-regex = "^/v1/({"|".join(UNLIKELY)})"
include-method = "POST"
checks.positive_data_acceptance.enabled = false
"""


@schemathesis.serializer("application/jsonl")
def as_lines(_context: Any, value: Any) -> bytes:
    """The document says only that it is a string."""
    return str(value).encode("utf-8", "surrogateescape")


@schemathesis.hook
def filter_case(_context: Any, case: Any) -> bool:
    """Longer request lines never reach the app: uvicorn refuses them."""
    return len(urlencode(case.query or {}, doseq=True)) < LONGEST_QUERY


def test_no_request_finds_a_fault(world: World, tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    with world.client() as client:
        finished(client, post_job(client, post_seeds(client))["id"])
    arguments = ["--config-file", str(config), "run", f"{world.address}/openapi.json", "--seed", "1"]
    options = ["-H", f"Authorization: Bearer {world.key()}", "--suppress-health-check", "all", "--warnings", "off"]
    found = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *arguments, *options, "--request-timeout", "20"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": __name__, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
    )
    assert found.returncode == 0, found.stdout[-20_000:] + found.stderr[-2000:]

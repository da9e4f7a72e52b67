"""The whole OpenAPI document against a running server: valid and broken requests, and calls one after the other.

The file is also the module of hooks that schemathesis loads in its own process.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import schemathesis
from schemathesis import GenerationMode

from tests.service.world import World, finished, post_job, post_seeds, seed_body

ROOT = Path(__file__).parents[2]
EXAMPLES = 5
UNLIKELY = ["seeds", "jobs", "predict", "generate", "score", "datasets"]
"""Bodies that follow the schema and still make no sense: a task without seeds, settings that contradict each other."""
LONGEST_QUERY = 60_000
_counter = itertools.count()
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

[[operations]]
include-path = "/v1/seeds/validate"
checks.positive_data_acceptance.enabled = false
checks.negative_data_rejection.enabled = false  # it answers 200 that a text is no table
"""
SMALL = {
    "augment": {"variants": 1, "rounds": 1},
    "loop": {"members": 0, "rounds": 0, "folds": 0},
    "encoder": {"labeller": False},
    "select": {"trust": False},
}
SEEDS_VARIABLE, KEY_VARIABLE = "AFDC_TEST_SEEDS", "AFDC_TEST_KEY_ID"


@schemathesis.serializer("application/jsonl")
def as_lines(_context: Any, value: Any) -> bytes:
    """The document says only that it is a string."""
    return str(value).encode("utf-8", "surrogateescape")


@schemathesis.hook
def filter_case(_context: Any, case: Any) -> bool:
    """Longer request lines never reach the app: uvicorn refuses them. And whoever revokes its own key is done."""
    own = case.method == "DELETE" and (case.path_parameters or {}).get("id") == os.environ[KEY_VARIABLE]
    return not own and len(urlencode(case.query or {}, doseq=True)) < LONGEST_QUERY


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Seeds and jobs that make sense in most valid requests: what they are linked to has something to go on.

    Keys of idempotency are left out of valid requests: the same one again would bring back what was deleted since.
    """
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
        return
    case.headers.pop("Idempotency-Key", None)
    if next(_counter) % 4 == 0:
        return
    bodies = {"POST /v1/seeds": seed_body(1), "POST /v1/jobs": {"seeds": os.environ[SEEDS_VARIABLE], "settings": SMALL}}
    if case.operation.label in bodies and case.media_type == "application/json":
        case.body = bodies[case.operation.label]


def test_no_request_finds_a_fault(world: World, tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    with world.client() as client:
        seeds = post_seeds(client)
        key = client.post("/keys", json={"scopes": ["admin"]}).json()
        finished(client, post_job(client, seeds)["id"])
    arguments = ["--config-file", str(config), "run", f"{world.address}/openapi.json", "--seed", "1"]
    options = ["-H", f"Authorization: Bearer {key['key']}", "--suppress-health-check", "all", "--warnings", "off"]
    found = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *arguments, *options, "--request-timeout", "20"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": __name__,
            "PYTHONPATH": str(ROOT),
            "NO_COLOR": "1",
            SEEDS_VARIABLE: seeds,
            KEY_VARIABLE: key["id"],
        },
    )
    covered = re.search(r"API Links: +(\d+) covered", found.stdout)
    assert found.returncode == 0, found.stdout[-20_000:] + found.stderr[-2000:]
    assert covered is not None
    assert int(covered[1]) > 5

"""Ten thousand idle event streams beside posts: bounded memory, no stream lost, no undeclared answer.

How fast the answers come is for `python -m benchmarks.service_load` to say: a test measures no time.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_ten_thousand_streams_beside_posts() -> None:
    command = [sys.executable, "-m", "benchmarks.service_load", "--clients", "10000", "--rate", "50", "--seconds", "20"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=600).stdout
    found = json.loads(told[told.index("{") : told.rindex("}") + 1])
    assert (found["streams"], found["streams_lost"]) == (10_000, 0)
    assert found["above_idle_mib"] <= 1024
    assert not found["undeclared"]
    assert not found["failed"]
    assert found["posts"].keys() & {"202"}

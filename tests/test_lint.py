"""What the linter refuses in this project's own code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint(code: str) -> str:
    """What ruff says of a module of the server."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise"]
    command += ["--stdin-filename", "server/afdc_server/made_up.py", "-"]
    return subprocess.run(command, cwd=ROOT, input=code, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize(
    "code",
    [
        *(f"import {name}\n" for name in ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")),
        "from pickle import loads\n",
        "import torch\n\ntorch.load('x')\n",
        "from torch import load\n",
        "import pandas as pd\n\npd.read_pickle('x')\n",
    ],
)
def test_nothing_that_runs_what_it_reads_gets_in(code: str) -> None:
    assert "TID251" in lint(code)


def test_what_holds_data_alone_is_welcome() -> None:
    assert "All checks passed" in lint("from safetensors.torch import load_file\n\nload_file('x')\n")

"""The generated parts of the documentation are what the code says."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from afdc.config import RunConfig
from afdc.result import RunResult
from afdc_server.export.schema import AUDIT_COLUMNS

DOCS = Path(__file__).parent.parent / "docs"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["configuration.md", "outputs.md", "cli.md"])
def test_page_is_up_to_date(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert generator().fill(page, text) == text, "run python docs/generate.py"


def test_every_option_is_in_the_table() -> None:
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    for section, values in RunConfig().model_dump().items():
        names = [f"{section}.{key}" for key in values] if isinstance(values, dict) else [section]
        for name in names:
            line = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
            assert not line.endswith("|  |"), f"{name} has no description"


def test_outputs_hold_columns_and_schema() -> None:
    text = (DOCS / "outputs.md").read_text(encoding="utf-8")
    assert all(f"| `{column}` |" in text for column in AUDIT_COLUMNS)
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    assert blocks[0] == RunResult.model_json_schema()

"""Every code of an error that the API can answer with stands in docs/operations.md, and no other does."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import afdc_server
from afdc.errors import AfdcError
from afdc_server.api import problems

OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
PACKAGES = ("accounts", "api", "datasets", "db", "jobs", "ledger", "seeds", "service")
MAKERS = {"RequestError", "Problem", "_reply"}
"""What a problem is made with: its code is the keyword `code`, or the second argument."""
NEVER_TOLD = {"error", "interrupted"}
"""The root of all errors, which nothing raises, and a job's word to its own runner."""


def server_modules() -> Iterator[ModuleType]:
    for package in PACKAGES:
        parent = importlib.import_module(f"{afdc_server.__name__}.{package}")
        yield parent
        for found in pkgutil.iter_modules(parent.__path__, f"{parent.__name__}."):
            if found.name.rpartition(".")[2] not in {"__main__", "migrations"}:
                yield importlib.import_module(found.name)


def codes_of_classes(kind: type[AfdcError] = AfdcError) -> set[str]:
    found = set() if kind.__module__.startswith(("afdc.sdk", "afdc.cli", "tests")) else {kind.code}
    return found.union(*map(codes_of_classes, kind.__subclasses__()))


def codes_of_calls(module: ModuleType) -> Iterator[str]:
    for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in MAKERS:
            continue
        told = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        told += node.args[1:2] if node.func.id == "_reply" else []
        for value in told:
            if isinstance(value, ast.Constant):
                yield str(value.value)
            elif isinstance(value, ast.Name) and value.id.isupper():
                yield str(getattr(module, value.id))


def test_the_docs_have_every_code_and_no_other() -> None:
    modules = list(server_modules())
    in_code = codes_of_classes() | {code for module in modules for code in codes_of_calls(module)}
    in_code |= {*problems.HTTP_CODES.values(), problems.OTHER_HTTP}
    rows = OPERATIONS.read_text().partition("## Error codes")[2].splitlines()
    in_docs = {code for row in rows if row.startswith("| `") for code in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert {"invalid_json", "headers_too_large", "idempotency_key_reused"} <= in_code, "calls are not understood"
    assert in_docs == in_code - NEVER_TOLD

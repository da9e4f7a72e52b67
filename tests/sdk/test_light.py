"""What an import brings."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import afdc

SDK = Path(afdc.__file__).parent / "sdk"
ALLOWED = {"afdc", "httpx", "pydantic"}
LAZY = {"terminal.py": {"rich"}}


def loaded(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_import_afdc_brings_nothing() -> None:
    found = loaded("import afdc; dir(afdc)")
    assert not found & {"httpx", "pydantic", "pydantic_core", "rich", "typer", "numpy", "torch", "anyio"}


def test_the_client_brings_nothing_heavy() -> None:
    found = loaded("from afdc import Client, AsyncClient; Client()")
    assert {"httpx", "pydantic"} <= found
    assert not found & {"torch", "vllm", "fastapi", "numpy", "pandas", "pyarrow", "datasets", "typer", "IPython"}
    assert not (found - loaded("import httpx, pydantic")) & {"rich", "click"}, "httpx brings these for its own commands"


def test_the_client_works_without_rich() -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(['rich', 'click', 'typer', 'numpy'], None))"
    loaded(f"{blocked}\nfrom afdc import Client; Client().jobs")


@pytest.mark.parametrize("path", sorted(SDK.glob("*.py")), ids=lambda path: path.name)
def test_only_httpx_and_pydantic_are_imported(path: Path) -> None:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    assert names - sys.stdlib_module_names - {"__future__"} <= ALLOWED | LAZY.get(path.name, set())


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Klient'"):
        _ = afdc.Klient
    assert {"Client", "AsyncClient"} <= set(dir(afdc))

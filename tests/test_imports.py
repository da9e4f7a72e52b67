"""The light packages stay light, and arrows between packages point one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
BLOCKER = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
import importlib, pkgutil
package = importlib.import_module({package!r})
for module in pkgutil.walk_packages(package.__path__, {package!r} + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
HEAVY = {"torch", "vllm", "peft", "transformers", "fastapi", "sqlalchemy", "pyarrow", "datasets"}
ROOTS = {
    "afdc": ("client/afdc", HEAVY | {"numpy", "afdc_pipeline", "afdc_server", "afdc_trainer"}),
    "afdc_pipeline": ("pipeline/afdc_pipeline", HEAVY | {"afdc_server", "afdc_trainer"}),
    "afdc_trainer": ("trainer/afdc_trainer", {"vllm", "afdc_pipeline", "afdc_server"}),
    "afdc_server": ("server/afdc_server", {"afdc_trainer"}),
}


@pytest.mark.parametrize("package", ["afdc", "afdc_pipeline"])
def test_every_light_module_imports_without_the_heavy_ones(package: str) -> None:
    code = BLOCKER.format(blocked=sorted(ROOTS[package][1]), package=package)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", sorted(ROOTS))
def test_arrows_point_one_way(package: str) -> None:
    folder, forbidden = ROOTS[package]
    for path in (REPOSITORY / folder).rglob("*.py"):
        found = imported_roots(ast.parse(path.read_text())) & forbidden
        assert not found, f"{path} imports {found}"


def imported_roots(tree: ast.Module) -> set[str]:
    """First parts of every imported name, lazy imports included."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_the_four_roots_are_not_packages() -> None:
    for folder, _ in ROOTS.values():
        assert not (REPOSITORY / folder).parent.joinpath("__init__.py").exists()

#!/usr/bin/env bash
# Build the wheel, install it with only its light dependencies into an empty environment, and use the client there.
# The environment stays in build/client: tests/service/test_real.py runs the README's lines in it (`make check`).
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

.venv/bin/python -m hatchling build -t wheel -d "$work/dist" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
client=$PWD/build/client
.venv/bin/python -m venv --clear "$client"
"$client/bin/pip" install -q --disable-pip-version-check -c <(grep -v '^torch' requirements/cpu.txt) \
  "$work"/dist/*.whl >"$work/log" 2>&1 || { grep -v '^WARNING' "$work/log" >&2; exit 1; }
cd "$work"
"$client/bin/python" - <<'PYTHON'
import importlib.util
import sys

import afdc
import afdc.config

for heavy in ("torch", "vllm", "numpy", "fastapi", "transformers"):
    assert importlib.util.find_spec(heavy) is None, f"{heavy} came along with the bare wheel"
assert "rich" not in sys.modules, "importing afdc imports the command line's dependencies"
print("bare wheel: import afdc works")
PYTHON
"$client/bin/afdc" --help >"$work/help"
grep -q run "$work/help"
echo "bare wheel: afdc --help works"

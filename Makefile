# Every target works from a bare clone: each makes .venv first. PYTHON picks the interpreter (3.10 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ROOTS := core plugins model runtime export calib
DEMO := build/demo

.PHONY: setup lint types test demo bench test-gpu bench-gpu clean

setup: $(STAMP)

# An editable install with everything that the other targets need; it builds the native libraries on the way.
$(STAMP): pyproject.toml constraints.txt hatch_build.py $(shell find plugins/csrc plugins/mscope/plugins/build.py -type f)
	$(PYTHON) -c "import sys; sys.exit(None if sys.version_info >= (3, 10) else 'Python 3.10 or newer is needed')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=23.1"
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt --editable ".[dev]"
	touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

test: $(STAMP) lint types
	$(BIN)/python -m pytest

# Builds the trained digits model, runs it adaptively over pictures that it makes, and draws what it did.
demo: $(STAMP)
	rm -rf $(DEMO)
	$(BIN)/python examples/digit_pictures.py $(DEMO)/pictures --count 12
	$(BIN)/mscope-export build --size digits --out $(DEMO)/bundle
	$(BIN)/mscope-run $(DEMO)/pictures --bundle $(DEMO)/bundle --save-vis $(DEMO)/overlays
	@echo "Pictures of what was refined: $(DEMO)/overlays"

# These two run as they are on a GPU machine: no .venv, nothing fetched; Python, torch, numpy, pytest and nvcc must be there.
GPU_PYTHON = PYTHONPATH="$(subst $() ,:,$(strip $(ROOTS))):tests" $(PYTHON)

test-gpu:
	$(GPU_PYTHON) -m mscope.plugins.build_cuda
	MSCOPE_REQUIRE_GPU=1 $(GPU_PYTHON) -m pytest tests/gpu -rs

bench-gpu:
	$(GPU_PYTHON) -m mscope.plugins.build_cuda
	$(GPU_PYTHON) benchmarks/scan_gpu.py
	$(GPU_PYTHON) benchmarks/latency_gpu.py

bench: $(STAMP)
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/digits_accuracy.py

clean:
	rm -rf build dist $(VENV) plugins/mscope/plugins/_native

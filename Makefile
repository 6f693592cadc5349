# The daily loop. Each target works as the only command typed: it sets up what it needs first.
PYTHON ?= python3
VENV   ?= .venv
EXTRAS ?= dev
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.setup-$(EXTRAS)

.PHONY: setup lint format test arm-test image-test bench demo lock clean
setup: $(STAMP)

# The lock file pins every version; the extras beyond it (torch) take the newest that fits.
$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[$(EXTRAS)]'
	touch $@

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: setup
	$(BIN)/python -m pytest

# The Arm kernels under emulation, and what they cost: downloads an Arm Python once (Debian's apt, no root), takes minutes.
arm-test: setup
	$(BIN)/python -m deploy.arm_tree
	ARM_TEST=1 $(BIN)/python -m pytest tests/unit/test_simd_arm.py tests/system/test_arm.py
	$(BIN)/python -m benchmarks arm

# The Raspberry Pi image in an emulated machine: needs root and mmdebstrap, builds it first (half an hour), takes an hour.
image-test: setup
	IMAGE_TEST=1 $(BIN)/python -m pytest tests/system/test_image.py -s

bench: setup
	$(BIN)/python -m benchmarks all

demo: setup
	$(BIN)/python -m deploy.demo

lock: setup
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --no-header --no-annotate --python-version 3.11 \
	  --extra dev --extra train --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache *.egg-info

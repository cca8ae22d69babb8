# The four words: make demo, make test, make bench, make gpu. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Without a GPU the tested pins apply; with one, torch's CUDA wheel names the triton it needs.
PINS := $(if $(shell command -v nvidia-smi 2>/dev/null),,-c constraints.txt)
TORCH := $(if $(PINS),torch==2.13.0,torch)

demo: $(VENV)/ready
	$(BIN)/python examples/demo.py $(if $(DEBIAN),--debian)

test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -P -m pytest -n auto --dist worksteal -m "not slow and not gpu"

bench: $(VENV)/ready
	$(BIN)/python -P -m pytest benchmarks
	$(BIN)/python benchmarks/step_ratios.py

gpu: $(VENV)/ready
	$(BIN)/python benchmarks/gpu.py

# torch first and alone: an unpinned torch pulls gigabytes of CUDA packages onto a machine without a GPU
$(VENV)/ready: pyproject.toml constraints.txt $(wildcard csrc/*.* csrc/*/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PINS) -e ".[lm,viz,signum,dev]"
	touch $@

clean:
	rm -rf $(VENV) build runs data .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: demo test bench gpu clean

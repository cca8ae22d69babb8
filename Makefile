# The words: make demo, make test, make test-all, make bench, make gpu, make peers. Each sets up what it needs, in .venv or .venv-peers.
PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
BIN := $(VENV)/bin
# Without a GPU the tested pins apply; with one, torch's CUDA wheel names the triton it needs.
PINS := $(if $(shell command -v nvidia-smi 2>/dev/null),,-c constraints.txt)
TORCH := $(if $(PINS),torch==2.13.0,torch)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -P -m pytest -n auto --dist worksteal

demo: $(VENV)/ready
	$(BIN)/python examples/demo.py $(if $(DEBIAN),--debian)

# About 8 minutes on 2 cores: every op, architecture, format and command, but not every combination of them.
test: $(VENV)/ready
	$(PYTEST) -m "not slow and not gpu"

test-all: $(VENV)/ready
	$(PYTEST) -m "not gpu"

# Ours beside plain PyTorch and every peer that can be installed: under 15 minutes on 2 cores, into benchmarks/results/.
# The learning rates (quality.py --tune) and the largest dictionaries (scaling.py --largest) take longer and stay as they are.
bench: $(PEERS)/ready data/acts-bench
	$(PEERS)/bin/python -P -m pytest benchmarks --results
	$(PEERS)/bin/python -m benchmarks.peers.step_ratios data/acts-bench
	$(PEERS)/bin/python -m benchmarks.peers.instructions data/acts-bench
	$(PEERS)/bin/python -m benchmarks.peers.scaling data/acts-bench
	$(PEERS)/bin/python -m benchmarks.activations.pipeline
	$(PEERS)/bin/python -m benchmarks.peers.quality data/acts-bench data/heldout-corpus
	$(PEERS)/bin/python -m benchmarks.report

# Everything that can be checked and measured on this machine's GPU, without a limit of time; what is done already stays.
gpu: $(VENV)/ready
	$(BIN)/python -m benchmarks.gpu

# The tests beside the real packages of other projects, on activations of the text that the demo reads.
peers: $(PEERS)/ready data/acts-bench
	OMP_NUM_THREADS=1 SPARSIFY_DISABLE_TRITON=1 $(PEERS)/bin/python -P -m pytest tests/peers -n auto

data/acts-corpus:
	$(MAKE) demo

# Of the text that the demo reads, more than the 131,072 tokens that quality.py trains on once.
data/acts-bench: | data/acts-corpus $(PEERS)/ready
	$(PEERS)/bin/saefast cache data/smollm2-135m data/corpus.jsonl --hook model.layers.12 --out $@ --tokens 220000

# torchvision comes with transformer-lens, fits another torch, and breaks the import of transformers.
# sae-dashboard pins transformers < 4.57, automated-interpretability numpy < 2, and delphi wants vllm: they run without. PyPI's
# circuit-tracer is a fork with the same models; a checkout of decoderesearch/circuit-tracer on PYTHONPATH has the pages, too.
$(PEERS)/ready: pyproject.toml constraints.txt $(wildcard csrc/*.* csrc/*/*)
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check $(PINS) -e ".[peers,viz,dev]"
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --no-deps sae-dashboard==0.8.0 eai-delphi==0.1.3 automated-interpretability==0.0.24 circuit-tracer==0.5.0
	$(PEERS)/bin/pip uninstall --quiet --yes torchvision
	touch $@

# torch first and alone: an unpinned torch pulls gigabytes of CUDA packages onto a machine without a GPU
$(VENV)/ready: pyproject.toml constraints.txt $(wildcard csrc/*.* csrc/*/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PINS) -e ".[lm,text,interp,llm,viz,signum,dev]"
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) build runs data .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: demo test test-all bench gpu peers clean

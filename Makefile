# `make demo` and `make test` set up everything themselves, in folders of this checkout alone (.venv, .venv-low, ...).
# What they install is locked: exact versions and hashes in requirements/*.txt, and TORCH below. The set-up runs once: a
# stamp file in the environment, older than pyproject.toml and the lock only when those have changed.
#
#   make demo         the shipped clip and tiny model, with and without pruning
#   make test         lint, format, types, tests
#   make test-fast    the tests that take seconds: the method, the files, the replay of every method (under a minute)
#   make test-low     the tests with the oldest transformers of the range, in an environment of its own
#   make test-newest  the tests with the newest release of everything, whatever the lock says, in a new environment;
#                     what changed, what could not be tried and what failed: runs/newest/report.txt, report.json
#   make test-browser report and app in a real browser: Chromium, the system's own (CHROMIUM=/path names another)
#   make images       the pictures of report, app and benchmark in docs/img, by the same browser
#   make test-eval    the plugin for lmms-eval, in an environment of its own
#   make test-vllm    the plugin for vLLM, in an environment of its own: vLLM for the CPU
#   make docs         the documentation, in site/; a warning is an error
#   make lock         write requirements/*.txt anew: after a change of pyproject.toml, src/omnidrop/tested.py or
#                     requirements/lock.py; pins that still fit stay. UPGRADE=1 takes the newest of everything
#   make clean        remove the environments and caches
#
# TESTS names the test files of test, test-low and test-newest; TESTS=core is those of the engine. WORKERS: how many
# processes run the tests of test and test-low, each on one thread and with up to 1 GB.
#
# Which PyTorch: TORCH names it for pip, TORCH_INDEX (empty: pip's own choice) the index it comes from. Examples:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu       no CUDA libraries on a machine without a GPU
#   make demo TORCH="torch torchvision" PYTHON=python3.12            the newest, of PyTorch alone
#   make test-newest NEWEST_TORCH="torch torchvision"                the newest, even if it is a CUDA build

PYTHON ?= python3
TORCH ?= torch==2.13.0 torchvision==0.28.0
TORCH_INDEX ?=
NEWEST_TORCH ?=
NEWEST_FLAGS ?=
TESTS ?=
WORKERS ?= 2
UPGRADE ?=
HARNESS ?= lmms-eval==0.7.3
LOCKER ?= uv==0.13.9

PIP_FLAGS := --disable-pip-version-check --quiet
BIN := .venv/bin
LOW := .venv-low/bin
NEW := .venv-newest/bin
EVAL := .venv-eval/bin
SERVE := .venv-vllm/bin
INDEX = $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
VISION = $(filter torchvision%,$(TORCH))
CORE := $(wildcard tests/test_drift*.py) $(patsubst %,tests/test_%.py,oracle generate contract lean stream attention cache trace upstream edges audio_families) tests/families
SELECTED = $(if $(filter core,$(TESTS)),$(CORE),$(TESTS))

.PHONY: demo test test-fast test-low test-newest test-browser images test-eval test-vllm docs lint lock clean

demo: .venv/.ready
	$(BIN)/omnidrop demo

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) $(SELECTED)

test-fast: .venv/.ready-dev
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

lint: .venv/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-low: .venv-low/.ready-dev
	$(LOW)/python -m pytest -n $(WORKERS) $(SELECTED)

test-newest:
	$(PYTHON) -m venv --clear .venv-newest
	$(NEW)/python requirements/newest.py --torch "$(TORCH)" --newest-torch "$(NEWEST_TORCH)" --index "$(TORCH_INDEX)" $(NEWEST_FLAGS) $(SELECTED)

test-browser: .venv/.ready-browser
	$(BIN)/python -m pytest -rs tests/browser tests/test_app_server.py

images: .venv/.ready-browser
	$(BIN)/python -m benchmarks.report_images
	$(BIN)/python -m benchmarks.app_images
	$(BIN)/python -m benchmarks.needle_images

test-eval: .venv-eval/.ready
	$(EVAL)/python -m pytest -W default omnidrop-lab/tests/eval_env

test-vllm: .venv-vllm/.ready
	LD_PRELOAD=$(CURDIR)/.venv-vllm/lib/libiomp5.so $(SERVE)/python -m pytest -W ignore omnidrop-vllm/tests/vllm_env

docs: .venv/.ready-site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python -m pytest tests/test_docs_site.py

# $(call install,ENVIRONMENT,LOCK,FOLDERS): everything of requirements/LOCK.txt, then PyTorch, whose small dependencies are in
# the lock, so that only what its build brings (CUDA libraries) is added. torchvision comes without its dependencies: it
# would pull a second PyTorch where TORCH_INDEX has another build.
define install
	$(1)/bin/python -m pip install $(PIP_FLAGS) --require-hashes --no-deps --requirement requirements/$(2).txt
	$(1)/bin/python -m pip install $(PIP_FLAGS) $(INDEX) $(filter-out torchvision%,$(TORCH))
	$(if $(VISION),$(1)/bin/python -m pip install $(PIP_FLAGS) $(INDEX) --no-deps $(VISION))
	$(1)/bin/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation $(addprefix --editable ,$(3))
endef

# $(call extend,LOCK): more of the lock into .venv
extend = $(BIN)/python -m pip install $(PIP_FLAGS) --require-hashes --no-deps --requirement requirements/$(1).txt

.venv/.ready: pyproject.toml omnidrop-lab/pyproject.toml requirements/demo.txt
	$(PYTHON) -m venv .venv
	$(call install,.venv,demo,. omnidrop-lab)
	@touch $@

.venv/.ready-dev: .venv/.ready requirements/test.txt
	$(call extend,test)
	@touch $@

.venv/.ready-browser: .venv/.ready-dev requirements/browser.txt
	$(call extend,browser)
	@touch $@

.venv/.ready-site: .venv/.ready-dev requirements/site.txt
	$(call extend,site)
	@touch $@

.venv-low/.ready-dev: pyproject.toml omnidrop-lab/pyproject.toml requirements/low.txt
	$(PYTHON) -m venv .venv-low
	$(call install,.venv-low,low,. omnidrop-lab)
	@touch $@

# lmms-eval declares 52 requirements, of which requirements/eval.txt has those that its evaluator imports.
.venv-eval/.ready: pyproject.toml omnidrop-lab/pyproject.toml requirements/eval.txt
	$(PYTHON) -m venv .venv-eval
	$(call install,.venv-eval,eval,. omnidrop-lab)
	$(EVAL)/python -m pip install $(PIP_FLAGS) --no-deps $(HARNESS)
	@touch $@

# vLLM on the CPU; install.py mends what pip cannot. pip notes that torchaudio and torchcodec are missing: they are left out
# on purpose (requirements/lock.py). Intel's OpenMP must be loaded first, or prefill and decoding are slow and erratic.
.venv-vllm/.ready: pyproject.toml omnidrop-vllm/pyproject.toml requirements/vllm.txt omnidrop-vllm/tests/vllm_env/install.py omnidrop-vllm/tests/vllm_env/torchvision_hook.py
	$(PYTHON) -m venv .venv-vllm
	$(call install,.venv-vllm,vllm,. omnidrop-lab omnidrop-vllm)
	$(SERVE)/python omnidrop-vllm/tests/vllm_env/install.py
	@touch $@

lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install $(PIP_FLAGS) $(LOCKER)
	.venv-lock/bin/python requirements/lock.py $(if $(UPGRADE),--upgrade)

clean:
	rm -rf .venv .venv-low .venv-newest .venv-eval .venv-vllm .venv-lock site .pytest_cache .ruff_cache .mypy_cache .hypothesis

# Everything a developer does, from a fresh clone: Python 3.10+, a C++ compiler and make are enough.
PYTHON ?= python3
VENV ?= .venv
STAGE ?= 1 2
SITE ?= build/docs

IN_VENV := "$(VENV)/bin/python" -m
# TORCH=2.6.0 takes that torch, not the one that the release was tested with, and of Triton and CUDA what it brings.
ifdef TORCH
CONSTRAINTS := build/constraints-torch-$(TORCH).txt
EXTRAS := dev,experiments
else
CONSTRAINTS := constraints.txt
EXTRAS := dev,experiments,triton
endif
PIP_INSTALL := $(IN_VENV) pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
INSTALLED := $(VENV)/.installed
JSON_SCHEMA := $(IN_VENV) check_jsonschema --quiet --builtin-schema
CXX_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-kernels test-all build nvcc lint format docs bench gpu-check wheel sdist release clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "PYTHON=$(PYTHON) makes the environment in VENV=$(VENV); both can be set."

demo: build ## Train a network with SGD and with scale-amended SGD, show table and picture
	$(IN_VENV) experiments compare --methods sgd paper recommended --resume

test: build ## Run the tests of every promise on every backend, in under five minutes
	$(IN_VENV) pytest --numprocesses=auto

test-kernels: build ## Run what a change of a kernel needs besides: sanitizers, mistakes, compiled code, full grids
	$(IN_VENV) pytest --numprocesses=auto --dist=loadgroup -m kernels

# fastai and timm without what they need, which is spaCy and a torchvision with a torch of its own. torchvision lies where
# only the tests look: one for CUDA beside a torch for the CPU cannot be imported, and Lightning imports what it finds. It
# goes with one torch, as Triton does.
test-all: build ## Run everything, with more examples drawn at random and other people's frameworks
	SASGD_BUILD_NATIVE=0 $(PIP_INSTALL) -e ".[docs,frameworks]"
	$(PIP_INSTALL) --no-deps fastai timm
	$(if $(TORCH),,$(PIP_INSTALL) --no-deps --upgrade --target "$(VENV)/torchvision" torchvision)
	$(IN_VENV) pytest --numprocesses=auto --dist=loadgroup -m "" --hypothesis-profile=all

# Always run: ninja knows better than make what is out of date.
build: $(INSTALLED) ## Make the environment and the native extension
	"$(VENV)/bin/python" setup.py --quiet build_ext --inplace

nvcc: $(INSTALLED) ## Take the CUDA compiler from PyPI, where the machine has none
	SASGD_BUILD_NATIVE=0 $(PIP_INSTALL) -e ".[nvcc]"

lint: $(INSTALLED) ## Check style, formatting, types and the files of GitHub
	$(IN_VENV) ruff check .
	$(IN_VENV) ruff format --check .
	$(IN_VENV) mypy
	$(JSON_SCHEMA) vendor.citation-file-format CITATION.cff
	$(JSON_SCHEMA) vendor.dependabot .github/dependabot.yml
	$(JSON_SCHEMA) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(JSON_SCHEMA) vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(JSON_SCHEMA) vendor.github-workflows $(wildcard .github/workflows/*.yml)
	"$(VENV)/bin/clang-format" --dry-run --Werror $(CXX_FILES)

format: $(INSTALLED) ## Format all sources
	$(IN_VENV) ruff check --fix .
	$(IN_VENV) ruff format .
	"$(VENV)/bin/clang-format" -i $(CXX_FILES)

# From nothing: of pages that are built already Sphinx repeats no warning.
docs: $(INSTALLED) ## Make the site of docs/ in build/docs, with warnings as errors
	SASGD_BUILD_NATIVE=0 $(PIP_INSTALL) -e ".[docs]"
	rm -rf "$(SITE)"
	$(IN_VENV) sphinx --fail-on-warning --keep-going --quiet -c docs . "$(SITE)"

bench: build ## Measure the optimizers against each other: runs/bench.md and runs/bench.png
	$(PIP_INSTALL) -e ".[bench]"
	$(PIP_INSTALL) --no-deps timm
	$(IN_VENV) bench

# With the first Python that has a torch that sees a GPU: where there is no network, $(PYTHON) itself.
gpu-check: ## Build, test and measure on a GPU; STAGE=1 or 2 for one half, OPTIONS go to python -m tools.gpu_check
	@for python in "$(PYTHON)" "$(VENV)/bin/python"; do \
	    "$$python" -c 'import sys, torch; sys.exit(not (torch.cuda.is_available() or "cpu" in sys.argv))' $(OPTIONS) 2>/dev/null || continue; \
	    exec "$$python" -m tools.gpu_check --stage $(STAGE) $(OPTIONS); \
	done; \
	echo "Neither $(PYTHON) nor $(VENV)/bin/python has a torch that sees a CUDA device; name a Python with make PYTHON=..."; \
	exit 1

# With the OpenMP runtime left out, so that a process has torch's alone. PATH is empty: the wheel needs no compiler.
wheel: $(INSTALLED) ## Build a wheel for this Python, try it where no compiler is found, put it into dist/
	SASGD_BUILD_NATIVE=0 $(PIP_INSTALL) -e ".[release]"
	rm -rf build/wheel
	SASGD_BUILD_NATIVE=1 $(IN_VENV) pip wheel --no-deps --wheel-dir build/wheel/built .
	case `uname` in \
	    Linux) PATH="$(VENV)/bin:$$PATH" $(IN_VENV) auditwheel repair --exclude libgomp.so.1 -w build/wheel build/wheel/built/*.whl;; \
	    *) cp build/wheel/built/*.whl build/wheel;; \
	esac
	"$(VENV)/bin/python" -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet -c $(CONSTRAINTS) build/wheel/*.whl pytest
	PATH= build/wheel/venv/bin/python tools/try_installed.py
	mkdir -p dist
	mv build/wheel/*.whl dist

# On Windows nothing is compiled: a wheel says so before pip looks for a compiler. Elsewhere pip takes the archive.
sdist: $(INSTALLED) ## Make the source archive, and the wheel for Windows, in dist/
	SASGD_BUILD_NATIVE=0 $(PIP_INSTALL) -e ".[release]"
	$(IN_VENV) build --sdist
	SASGD_BUILD_NATIVE=0 $(IN_VENV) build --wheel --config-setting=--build-option=--plat-name=win_amd64

release: ## Check everything and tag: make release VERSION=1.2.3
	$(PYTHON) -m tools.release "$(VERSION)"
	.ci/run
	git tag --annotate "v$(VERSION)" --message "sasgd_fused $(VERSION)"
	@echo "Tagged v$(VERSION); pushing it publishes."

clean: ## Remove what was built; the environment stays
	rm -rf build dist *.egg-info sasgd_fused/_C.*.so
	rm -rf .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache

# The package goes in without its extension: `build` makes that, where its messages are seen.
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found; name a Python 3.10 or newer with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed, $(PYTHON) is `$(PYTHON) --version 2>&1`; name another with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	test -x "$(VENV)/bin/pip" || $(PYTHON) -m venv "$(VENV)"
	$(PIP_INSTALL) "pip>=23"
	SASGD_BUILD_NATIVE=0 $(PIP_INSTALL) -e ".[$(EXTRAS)]"
	@touch "$@"

build/constraints-torch-%.txt: constraints.txt
	mkdir -p build
	sed '/^triton==/d; /^cuda-toolkit==/d; s/^torch==.*/torch==$*/' $< > $@

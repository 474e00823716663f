# Two commands for a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt
TORCH := $(shell grep '^torch==' .ci/constraints.txt)
WORKERS ?= 2
SEED ?= $(shell date +%s)
# Each worker runs a stretch of neighbouring tests, which share what they load; who ends first takes
# over the rear half of what another has left.
PYTEST = $(RUN) -m pytest --numprocesses $(WORKERS) --dist worksteal

.PHONY: demo check test test-all test-sample test-floors test-versions test-neighbours test-ray test-servers mutants bench docs notebooks wheel clean

$(VENV)/demo: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[langchain,llama-index,cli]'
	touch $@

# torch comes first, by its exact pin: a bare `torch` would bring gigabytes of CUDA packages.
$(VENV)/all: $(VENV)/demo
	$(PIP) --upgrade pip
	$(PIP) $(TORCH)
	$(PIP) --editable '.[all]' --group test
	touch $@

demo: $(VENV)/demo ## rerank real text with the bundled model, sockets blocked
	$(VENV)/bin/rerank-adapters demo

check: $(VENV)/all ## linters, types, layers
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy --num-workers $(WORKERS)
	$(VENV)/bin/lint-imports

test: check ## set up and run the tests, without the long ones
	$(PYTEST)

test-all: check test-floors test-versions test-neighbours test-ray test-servers ## every test, the long ones too, on every version
	$(PYTEST) -m ""

test-floors: ## the lowest versions that pyproject.toml claims, in environments of their own
	.ci/floors

test-versions: ## every Python that pyproject.toml names, as far as it is here
	.ci/versions

# A folder beside the environment, so that the other tests do without what is in it.
$(VENV)/neighbours: $(VENV)/all .ci/neighbours.txt
	rm -rf $@
	$(PIP) --target $@ --no-deps --requirement .ci/neighbours.txt
	touch $@

test-neighbours: $(VENV)/neighbours ## traces in OpenInference and Langfuse, adapters in FastAPI, OpenVINO, Haystack, fastembed, cherche
	PYTHONPATH=$(VENV)/neighbours $(RUN) -m pytest -m "" tests/test_fastapi.py tests/*/test_observers.py
	PYTHONPATH=$(VENV)/neighbours $(RUN) -m pytest -m "" -k openvino tests/backends tests/scorers/test_laws.py
	PYTHONPATH=$(VENV)/neighbours $(RUN) -m pytest -m "" tests/test_haystack.py tests/test_fastembed.py tests/test_cherche.py tests/test_public_api.py tests/test_docstrings.py

$(VENV)/ray: $(VENV)/all .ci/ray.txt
	rm -rf $@
	$(PIP) --target $@ --no-deps --requirement .ci/ray.txt
	touch $@

test-ray: $(VENV)/ray ## a local Ray: lists in bulk, actors and drivers that die, a server and its clients
	PYTHONPATH=$(VENV)/ray $(RUN) -m pytest -m "" tests/ray
	PYTHONPATH=$(VENV)/ray $(RUN) -m pytest -m "" -W ignore::DeprecationWarning -k ray tests/test_public_api.py tests/test_docstrings.py

# Real servers pin other versions of everything: an environment of its own.
$(VENV)/infinity:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet --disable-pip-version-check 'infinity-emb[server,torch]==0.0.78' $(TORCH)
	touch $@

test-servers: $(VENV)/all $(VENV)/infinity ## a real Infinity server on loopback, whose scores are ours
	INFINITY_EMB=$(VENV)/infinity/bin/infinity_emb $(RUN) -m pytest -m "" tests/scorers/test_infinity.py

mutants: $(VENV)/all ## make the library wrong in one line at a time: its tests must notice
	$(RUN) tests/mutants.py

test-sample: $(VENV)/all ## of each group of long tests one, drawn with a SEED that is printed
	$(PYTEST) -m long --sample $(SEED) --verbose

bench: $(VENV)/all ## speed beside sentence-transformers, on this machine
	$(RUN) tests/benchmarks/speed.py

docs: $(VENV)/all ## the API reference, into build/reference
	$(RUN) -W error .docs/reference.py build/reference

notebooks: $(VENV)/all ## run the notebooks again, offline, and keep their outputs
	$(RUN) -m tests.notebooks

wheel: $(VENV)/all ## build the wheel and score with it in empty environments
	.ci/wheel $(RUN)

clean:
	rm -rf $(VENV) build dist

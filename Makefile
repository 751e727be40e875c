PYTHON ?= python3

.PHONY: quickstart runtime test docs lint

# A fresh environment, a small network trained on real digits, and its INT8 engine with a verdict.
quickstart:
	$(PYTHON) -m venv .venv-quickstart
	.venv-quickstart/bin/python -m pip install --quiet --constraint constraints.txt '.[build]' scikit-learn
	PATH="$(CURDIR)/.venv-quickstart/bin:$$PATH" sh examples/digits/quickstart.sh quickstart

# The engine of the quickstart in a fresh environment of the base installation, without torch and ONNX.
runtime:
	$(PYTHON) -m venv --clear .venv-runtime
	.venv-runtime/bin/python -m pip install --quiet --constraint constraints.txt .
	.venv-runtime/bin/rescompile run quickstart/engine quickstart/digit.png
	.venv-runtime/bin/rescompile verify quickstart/engine --validation-set quickstart/validation --min-agreement 0.98
	.venv-runtime/bin/rescompile inspect quickstart/engine
	.venv-runtime/bin/rescompile profile quickstart/engine --seconds 1
	.venv-runtime/bin/rescompile bench quickstart/engine --seconds 1 --starts 1

# Lint, types and all tests in a fresh environment, as in continuous integration. Each of the two workers uses one thread:
# with more threads than cores, small convolutions take up to forty times as long. nvidia-pytriton carries a real
# inference server, for Linux alone; without it one test is skipped.
test:
	$(PYTHON) -m venv --clear .venv-test
	.venv-test/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,tensorrt-rtx,triton]'
	-.venv-test/bin/python -m pip install --quiet --no-deps --constraint constraints.txt nvidia-pytriton
	$(MAKE) lint BIN=.venv-test/bin/
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv-test/bin/python -m pytest -n 2

# The documentation as a site in build/site, with all links checked.
docs:
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet '.[docs]'
	.venv-docs/bin/mkdocs build --quiet

# Needs an environment in which the project is installed with its extra dev.
lint:
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)mypy

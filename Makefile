PYTHON ?= python3

.PHONY: quickstart runtime lowest newest smoke test parsers docs lint sbom hashes

# A fresh environment, a small network trained on real digits, and its INT8 engine with a verdict.
quickstart:
	$(PYTHON) -m venv .venv-quickstart
	.venv-quickstart/bin/python -m pip install --quiet --constraint constraints.txt '.[build]' scikit-learn
	PATH="$(CURDIR)/.venv-quickstart/bin:$$PATH" sh examples/digits/quickstart.sh quickstart

# The engine of the quickstart in a fresh environment of the base installation, without torch and ONNX.
runtime:
	$(PYTHON) -m venv --clear .venv-runtime
	.venv-runtime/bin/python -m pip install --quiet --constraint constraints.txt .
	$(MAKE) smoke BIN=.venv-runtime/bin/

# The same with the lowest versions that pyproject.toml allows, or the newest that there are, whatever constraints.txt says;
# PYTHON=python3.10 makes it the lowest Python, too. EXTRA=[build] also builds the engine with them.
lowest newest:
	$(PYTHON) -m venv --clear .venv-$@
	.venv-$@/bin/python -m pip install --quiet uv
	.venv-$@/bin/uv pip install --quiet --python .venv-$@/bin/python \
		--resolution $(if $(filter lowest,$@),lowest-direct,highest) '.$(EXTRA)'
	$(if $(EXTRA),.venv-$@/bin/rescompile build --model resnet20-cifar-bottleneck --weights quickstart/digits.safetensors \
		--crop 16 --precision int8 --calibration-set quickstart/calibration.npz --validation-set quickstart/validation \
		--max-top1-drop 1.0 --output quickstart/engine --force)
	$(MAKE) smoke BIN=.venv-$@/bin/

# What an installation of the base does, with the engine of the quickstart.
smoke:
	$(BIN)rescompile run quickstart/engine quickstart/digit.png
	$(BIN)rescompile verify quickstart/engine --validation-set quickstart/validation --min-agreement 0.98
	$(BIN)rescompile inspect quickstart/engine
	$(BIN)rescompile profile quickstart/engine --seconds 1
	$(BIN)rescompile bench quickstart/engine --seconds 1 --starts 1

# All components that the extras build and sign install, with versions and licences, as CycloneDX (sbom.cdx.json).
sbom:
	$(PYTHON) -m venv --clear .venv-sbom
	.venv-sbom/bin/python -m pip install --quiet --constraint constraints.txt '.[build,sign]'
	$(PYTHON) -m venv --clear .venv-cyclonedx
	.venv-cyclonedx/bin/python -m pip install --quiet cyclonedx-bom
	.venv-cyclonedx/bin/cyclonedx-py environment .venv-sbom --pyproject pyproject.toml --output-reproducible --output-file sbom.cdx.json

# Lint, types and all tests in a fresh environment, as in continuous integration. Each of the two workers uses one thread:
# with more threads than cores, small convolutions take up to forty times as long. nvidia-pytriton carries a real
# inference server, for Linux alone; without it one test is skipped.
test:
	$(PYTHON) -m venv --clear .venv-test
	.venv-test/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,tensorrt-rtx,triton]'
	-.venv-test/bin/python -m pip install --quiet --no-deps --constraint constraints.txt nvidia-pytriton
	$(MAKE) lint BIN=.venv-test/bin/
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv-test/bin/python -m pytest -n 2

# The share of the parsers' lines and branches that their tests reach, with a list of the others. Needs an environment
# with the extra dev, such as that of make test; RESCOMPILE_DATA adds real checkpoints.
PARSER_TESTS = tests/sources tests/calibration/images tests/calibration/test_table.py tests/calibration/test_mean_image.py \
	tests/graph/test_simplify.py tests/graph/test_variants.py tests/graph/test_metadata.py tests/graph/test_lint.py \
	tests/runtime tests/building/test_source.py tests/test_manifest.py tests/test_parser_fuzz.py
parsers:
	OMP_NUM_THREADS=1 $(BIN)python -m coverage run -m pytest -q -n 0 $(PARSER_TESTS)
	$(BIN)python -m coverage report

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

# The digests of what the base installs.
hashes:
	$(PYTHON) -m venv --clear .venv-hashes
	.venv-hashes/bin/python -m pip install --quiet uv
	head -2 constraints-hashed.txt > build-hashes.txt
	.venv-hashes/bin/uv pip compile --quiet pyproject.toml --constraint constraints.txt --python-version 3.11 \
		--generate-hashes --no-header --no-annotate >> build-hashes.txt
	mv build-hashes.txt constraints-hashed.txt

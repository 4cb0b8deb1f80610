# make demo   sets up and runs the main job on generated phantoms
# make test   sets up and runs the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up

.PHONY: setup demo test golden recipes check format clean bench
.PHONY: bench-growth bench-aupro bench-coverage bench-coreset bench-search bench-pipeline bench-throughput bench-extractors
.PHONY: bench-training bench-families bench-reconstruction bench-inpainting bench-latency bench-poolings bench-ct bench-lungs
.PHONY: false-alarms teacher

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dicom,dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/anomed demo -o demo

test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# Renews tests/golden/golden.json on purpose: see CONTRIBUTING. ARGS=--check says what differs and writes nothing.
golden: setup
	$(BIN)/python -m tests.golden.record $(ARGS)

# Writes models/*/recipe.toml from the settings of the detectors.
recipes: setup
	$(BIN)/python models/write_recipes.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The data sets in the folder that ANOMED_TEST_DATA names; refreshes the results table in README.
bench: setup
	$(BIN)/python benchmarks/bench.py $(ARGS)

bench-aupro: setup
	$(BIN)/python benchmarks/aupro.py $(ARGS)

bench-coreset: setup
	$(BIN)/python benchmarks/coreset.py

bench-search: setup
	$(BIN)/python benchmarks/search.py

# Draws docs/growth.png.
bench-growth: setup
	$(BIN)/python benchmarks/growth.py -m patchcore -m twoview --plot docs/growth.png $(ARGS)

bench-coverage: setup
	$(BIN)/python benchmarks/coverage.py $(ARGS)

# NORMALS, ABNORMALS and WEIGHTS name real images and a safetensors file: see the head of each script.
bench-pipeline: setup
	$(BIN)/python benchmarks/pipeline.py $(ARGS)

bench-throughput: setup
	$(BIN)/python benchmarks/throughput.py $(ARGS)

bench-ct: setup
	$(BIN)/python benchmarks/ct_volumes.py $(ARGS)

bench-lungs: setup
	$(BIN)/python benchmarks/lung_fields.py $(ARGS)

bench-extractors: setup
	$(BIN)/python benchmarks/extractors.py $(ARGS)

bench-training: setup
	$(BIN)/python benchmarks/training.py $(ARGS)

# ARGS="run ROOT -o OUT" measures the reconstruction and the student-teacher family, or the one of -f FAMILY.
bench-families: setup
	$(BIN)/python benchmarks/families.py $(ARGS)

# ARGS=pictures draws the pictures of the family's cards.
bench-reconstruction: setup
	$(BIN)/python benchmarks/reconstruction.py $(ARGS)

bench-inpainting: setup
	$(BIN)/python benchmarks/inpainting.py $(ARGS)

bench-latency: setup
	$(BIN)/python benchmarks/latency.py $(ARGS)

bench-poolings: setup
	$(BIN)/python benchmarks/poolings.py $(ARGS)

# A teacher for EfficientAD: see the head of the script.
teacher: setup
	$(BIN)/python models/efficientad/distil.py $(ARGS)

false-alarms: setup
	$(BIN)/python benchmarks/false_alarm_rate.py $(ARGS)

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

PYTHON ?= python3
BIN := .venv/bin
# A process for every core, each with one thread and one test at a time.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxschedchunk 1

.PHONY: demo test test-all laws lint docs bench clean

# One environment for everything; pip runs again only when pyproject.toml has changed.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[all]'
	touch $@

demo: .venv/installed
	rm -rf runs/demo
	$(BIN)/unmuddle train --noise symmetric:0.3 --parts none --out runs/demo/cross-entropy
	$(BIN)/unmuddle train --noise symmetric:0.3 --out runs/demo/full-method
	$(BIN)/unmuddle report runs/demo/cross-entropy runs/demo/full-method --out runs/demo/report.html

test: lint docs
	$(TEST)

# Besides: every architecture that ARM is tried on.
test-all: lint docs
	$(TEST) -m ''

# The laws of the loss on every backend, 200 batches each.
laws: .venv/installed
	UNMUDDLE_HYPOTHESIS_PROFILE=ci $(TEST) tests/supcon/test_laws.py -k 'reference or tiled or triton or module'

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file docs/mkdocs.yml

bench: .venv/installed
	mkdir -p runs
	$(BIN)/python benchmarks/supcon.py --json runs/bench-supcon.json --plot runs/bench-supcon.png
	$(BIN)/python benchmarks/supcon.py --growth
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/arm.py
	$(BIN)/python benchmarks/recipe.py

clean:
	rm -rf .venv runs docs/site dist build .ruff_cache .import_linter_cache .hypothesis .coverage

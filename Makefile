PYTHON ?= python3
MAKEFLAGS += --jobs=2
BIN := .venv/bin
# A process for every core, each with one thread and the tests of one file at a time.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadscope

.PHONY: demo test test-all test-matrix laws lint docs bench package clean

# One environment for everything; pip runs again only when pyproject.toml has changed.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[all]'
	touch $@

# One part more in each run, at equal cost, two runs at a time. UERM takes its evidence from the
# training batches, which costs no predictions. ARM is the published one, which suits drawn faces.
DEMO := cross-entropy arm arm-uerm arm-uerm-supcon
cross-entropy := --parts none
arm := --parts published_arm
arm-uerm := --parts published_arm,uerm
arm-uerm-supcon := --parts supcon,published_arm,uerm

demo: .venv/installed
	rm -rf runs/demo && mkdir -p runs/demo
	@echo "four trainings, two at a time; their logs are runs/demo/*.log"
	@$(MAKE) --no-print-directory --jobs 2 $(DEMO:%=runs/demo/%)
	$(BIN)/unmuddle report $(DEMO:%=runs/demo/%) --out runs/demo/report.html

$(DEMO:%=runs/demo/%):
	@OMP_NUM_THREADS=1 $(BIN)/unmuddle train --noise symmetric:0.3 --views 1 --epochs 24 --relabel_evidence batches $($(@F)) --out $@ > $@.log 2>&1 \
		&& echo "$@: $$(tail -1 $@.log)" || { cat $@.log; exit 1; }

test: lint docs
	$(TEST)

# Besides: every architecture that ARM is tried on, and the laws that public losses break.
test-all: lint docs
	$(TEST) -m ''

# The laws of the loss on every backend, 200 batches each.
laws: .venv/installed
	UNMUDDLE_HYPOTHESIS_PROFILE=ci $(TEST) tests/supcon/test_kernels.py::test_laws tests/supcon/test_laws.py -k 'kernels or reference or tiled or module'

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file docs/mkdocs.yml

# The tables of docs/pages/benchmarks.md, and a small study; `make bench BASE=REV` compares with a
# commit instead.
bench: .venv/installed
	$(BIN)/python -m benchmarks.timings.run $(if $(BASE),--base $(BASE))
	$(if $(BASE),,$(BIN)/python -m benchmarks.studies.parts --quick)

# What is built installs into an empty environment and works there.
package: .venv/installed
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	for file in dist/*.whl dist/*.tar.gz; do \
		rm -rf dist/empty && $(PYTHON) -m venv dist/empty && \
		dist/empty/bin/pip install --quiet "$$file" && dist/empty/bin/pip check && \
		dist/empty/bin/python tests/smoke.py && \
		dist/empty/bin/pip install --quiet "$$file[testing]" torchvision && \
		dist/empty/bin/python tests/smoke.py README.md || exit 1; \
	done

# The tests of the parts on the oldest and the newest supported torch, in environments of their own.
MATRIX ?= torch==2.6.0,torchvision==0.21.0 torch,torchvision
test-matrix:
	for versions in $(MATRIX); do \
		rm -rf .venv-matrix && $(PYTHON) -m venv .venv-matrix && \
		.venv-matrix/bin/pip install --quiet $$(echo $$versions | tr , ' ') -e '.[all]' && \
		OMP_NUM_THREADS=1 .venv-matrix/bin/python -m pytest --numprocesses auto --dist loadscope \
			-W default -k "not triton and not onnx and not (test_compiled and reference)" --ignore tests/supcon/test_kernels.py \
			tests/supcon tests/arm tests/uerm tests/test_imports.py || exit 1; \
	done

clean:
	rm -rf .venv .venv-matrix runs docs/site dist build .ruff_cache .import_linter_cache .hypothesis .coverage

# make train    sets everything up, trains the fast weight memory on generated stories, prints a table per task
# make test     sets everything up, passes linter, type checker and tests
# make lint     linter and type checker alone
# Needs python3 (3.11 or newer) with venv. PYTHON=… uses an environment that has torch already:
#   make test PYTHON=/path/to/venv/bin/python

ifdef PYTHON
ENVIRONMENT := $(PYTHON)
READY :=
else
ENVIRONMENT := .venv/bin/python
READY := .venv/ready
endif
RUN := runs/make-train

.PHONY: train test lint clean

train: $(READY)
	@rm -rf $(RUN)
	$(ENVIRONMENT) -m fastweights train catbabi-qa/fwm-quick --out $(RUN)

test: lint
	OMP_NUM_THREADS=1 $(ENVIRONMENT) -m pytest

lint: $(READY)
	$(ENVIRONMENT) -m ruff check .
	$(ENVIRONMENT) -m ruff format --check .
	$(ENVIRONMENT) -m mypy

.venv/ready: pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*)
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fastweights needs Python 3.11 or newer; python3 is " + sys.version.split()[0])'
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,figures]'
	@touch $@

clean:
	rm -rf .venv

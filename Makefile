# What a contributor runs; .ci/run runs the same, in a fresh environment, and more.
# make install EDITABLE=   installs a copy, as a user does.
EDITABLE = --editable
SITE = site
PIP = python -m pip --disable-pip-version-check
# A build leaves these behind, and the next would take files from there.
CLEAN = rm -rf build *.egg-info

.PHONY: install lint test slow docs

install:
	$(PIP) install --quiet --upgrade "pip>=25.1" # the first that knows --group
	$(PIP) install --quiet $(EDITABLE) . --group test --group lint --group docs
	$(if $(EDITABLE),,$(CLEAN))

# mypy and twine look at what is built: the package as it is installed, and what would be uploaded.
lint:
	ruff check .
	ruff format --check --quiet .
	python benchmarks/readme.py --check
	work=$$(mktemp -d) && trap "rm -rf $$work && $(CLEAN)" EXIT && \
	$(PIP) install --quiet --no-deps --target $$work/package . && \
	(cd $$work/package && mypy --config-file $(CURDIR)/pyproject.toml -p qwen3np) && \
	{ python -m build --outdir $$work/dist . > $$work/log 2>&1 || { cat $$work/log; false; }; } && \
	twine check --strict $$work/dist/*

test:
	pytest -q

slow:
	pytest -q -m slow

docs:
	mkdocs build --quiet --strict --site-dir $(abspath $(SITE))

# audiotok: `make demo` and `make test` are all a newcomer needs. Everything lives in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := audiotok benchmarks tests
PACKAGES := $(SOURCES) launchers grids
DEMO := compression.encodec_mmd_demo
GRID := compression.mmd_on_off_demo
SHOWN := evaluate.sisdr,evaluate.mi_groups_delay,evaluate.mmd,evaluate.usage
PARALLEL := -n 2 --dist loadgroup --no-loadscope-reorder
NUMERIC := $(addprefix tests/, adversarial losses metrics models modules quantization)

.PHONY: install demo demo-codec test test-fast lint notebooks constraints clean clean-venv clean-outputs clean-data

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("audiotok needs Python 3.11 or newer; this is " + sys.version.split()[0] + ": make PYTHON=python3.11 install")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# What a newcomer sees, and what to type next.
define DEMO_WORDS

What you see: one small codec (2 kb/s), trained on from the same weights, without the MMD and with it.
  losses.mmd          0: without. Otherwise the norm of its gradient, relative to that of the other losses.
  evaluate.sisdr      quality on music that no run has trained on, in dB; more is better.
  evaluate.mi_groups_delay   what a codebook says about another one, in bit; less is better.
  evaluate.mmd        what the MMD lowers, measured on the same music; less is better.
  evaluate.usage      share of the codes in use: what independence may cost.
The second table is the effect: minus the baseline of the same seed, with a 95 % interval over seeds.
An interval with 0 in it shows no clear effect.
What you hear: reports/$(DEMO)/index.html, in a browser.
Next:
  source .venv/bin/activate
  audiotok results $(DEMO)
  dora run solver=compression/demo_mmd device=cpu losses.mmd=1
  audiotok data prepare /path/to/music --output data/music    # yours; then as README.md says
endef
export DEMO_WORDS

demo: install  ## a small grid of EnCodec-MMD experiments on real music, ending in a page
	$(BIN)/audiotok data demo --output data/demo
	AUDIOTOK_LAUNCHER=local $(BIN)/dora grid $(DEMO) --retry --interval 0.25
	$(BIN)/audiotok report $(DEMO) --by losses.mmd --metric $(SHOWN) --baseline losses.mmd=0
	-$(BIN)/audiotok results $(DEMO) --by losses.mmd --metric $(SHOWN)
	-$(BIN)/audiotok results $(DEMO) --by losses.mmd --metric $(SHOWN) --baseline losses.mmd=0
	@$(BIN)/audiotok results $(DEMO) --check >/dev/null 2>&1; code=$$?; printf '%s\n' "$$DEMO_WORDS"; \
	[ $$code = 0 ] || echo "Not every run has completed, see above: make demo tries the others again."; exit $$code

demo-codec: install  ## the codec that `make demo` continues from, trained again: two hours; stopped, the same command goes on
	$(BIN)/audiotok data demo --output data/demo
	$(BIN)/dora run solver=compression/demo_codec device=cpu
	$(BIN)/python -m benchmarks.demo_codec

# Tensors of tests are tiny: several threads would only wait for each other, for ever so long on a busy machine.
test test-fast: export OMP_NUM_THREADS ?= 1

test: lint  ## everything; as root on Debian with a real SLURM
	# Four processes for two cores: two of them wait for SLURM most of the time.
	$(BIN)/python -m pytest $(PARALLEL) -n 4
	# The numeric tests again as an old processor would round: no result may rest on that.
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(BIN)/python -m pytest $(PARALLEL) -m 'not slow' $(NUMERIC)

test-fast: install  ## without training runs, SLURM and the browser
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow and not cluster and not browser'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports

notebooks: install  ## docs/notebooks: both notebooks, run on GRID
	mkdir -p docs/notebooks build/notebooks
	for name in report compare_seeds; do \
	  $(BIN)/papermill --cwd . notebooks/$$name.ipynb build/notebooks/$$name.ipynb -p grid $(GRID) -y 'by: [losses.mmd]' && \
	  $(BIN)/jupyter nbconvert --to markdown --no-input --output-dir docs/notebooks build/notebooks/$$name.ipynb || exit 1; \
	done

constraints:  ## renew constraints.txt from pyproject.toml
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet --disable-pip-version-check '.[dev]'
	( echo '# Every package of `make install`, pinned. Renew with `make constraints` and run the tests.'; \
	  build/constraints/bin/python -m pip freeze --all --exclude audiotok --exclude pip ) > constraints.txt

clean:  ## what is built and cached; experiments, data and .venv only by their own names
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(PACKAGES) -name __pycache__ -prune -exec rm -rf {} +

clean-venv:  ## .venv; `make install` makes it again
	rm -rf $(VENV)

clean-outputs:  ## every experiment with its checkpoints, for good
	rm -rf outputs

clean-data:  ## manifests, and the music that was fetched
	rm -rf data

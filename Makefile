# Each target sets up .venv by itself. PYTHON chooses the interpreter it is made from.
PYTHON ?= python3
BIN := .venv/bin

# Tests run in as many processes as there are cores, up to four; on 3.9 with every tensor's shape
# checked at run time.
PYTEST := -m pytest -n auto --maxprocesses 4 --dist loadfile
TYPED := --jaxtyping-packages=safehead_tl,beartype.beartype

# Not compiled when installed: what is imported is, once, by KEEP, and most of it never is. Without, every
# process takes some 20 seconds more to import PyTorch and the rest. Nothing else writes compiled
# files: those of checked shapes would be met where shapes are not checked.
export PYTHONDONTWRITEBYTECODE := 1
KEEP := -c "import pytest, safehead_tl.ground_truth, safehead_tl.public"
INSTALL := -m pip install --quiet --no-compile --constraint

NEWEST := transformer-lens==4.3.0
ON_COLAB = ipykernel $$(sed -n 's/==.*//p' constraints-colab.txt)

.PHONY: demo test test-tl4 test-newest cluster-check browser-test colab-check first-picture inspect-check check wheel-check bench bench-screening bench-truth claims docs linkcheck notebook-test lock organism address

demo: .venv/ready
	$(BIN)/safehead demo

test: .venv/ready
	$(BIN)/python $(PYTEST) $(TYPED) --ignore=tests/cluster/test_ray.py

# What replicas on a Ray cluster do, alone on the machine: Ray gives up where its own processes, which
# first are to be compiled, take long to start.
cluster-check: .venv/ready
	-env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m compileall -qq $$($(BIN)/python -c "import ray; print(*ray.__path__)")
	RAY_AUTH_MODE=disabled $(BIN)/python $(PYTEST) -n 0 tests/cluster/test_ray.py

# What the version of transformer-lens cannot change: drawing, reading, writing and counting. Their
# tests run a model only to have something to draw or to write, and assert nothing of how it ran.
SAME_ON_TL4 := cli cluster/test_ray.py cluster/test_sharing.py cluster/test_slurm.py figures \
	results scan/test_leases.py scan/test_shards.py $(addprefix judges/test_,coherence.py endpoint.py \
	keywords.py question.py rubric.py) $(addprefix evaluation/test_,answered.py panel.py) \
	prompts/test_alignment.py prompts/test_loading.py properties/test_readers.py test_heads.py \
	test_lessons.py test_main.py test_public_names.py test_writing.py

# The other tests on transformer-lens 4, which has only TransformerBridge, in a .venv-tl4 of its own;
# with them what goes all the way: the demo, and README's code.
test-tl4: .venv-tl4/ready
	.venv-tl4/bin/python $(PYTEST) $(addprefix --ignore=tests/,$(SAME_ON_TL4)) tests
	.venv-tl4/bin/python $(PYTEST) -n 0 tests/cli/test_cli.py::test_demo \
		tests/documentation/test_readme.py::test_the_code_runs

# What models say on the newest versions of everything but torch, as a plain install takes them, in a
# .venv-newest made anew each time. It is no part of .ci/run: it may fail without a change here.
test-newest:
	rm -rf .venv-newest
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --no-compile "$$(grep ^torch== constraints.txt)" . beartype pytest pytest-xdist
	.venv-newest/bin/python -m pip list | grep -E '^(torch|transformers?|transformer-lens) '
	.venv-newest/bin/python $(PYTEST) -W 'ignore:`past_key_values` is deprecated:FutureWarning' \
		tests/generation/test_texts.py::test_a_bridge_says_the_same_with_a_cache_as_without \
		tests/generation/test_texts.py::test_batched_greedy_is_one_by_one_and_that_of_transformers \
		tests/documentation/test_readme.py::test_the_code_runs \
		tests/cli/test_cli.py::test_demo

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Builds the wheel, installs it into an empty environment elsewhere, and runs the demo there.
wheel-check: .venv/ready
	rm -rf build/wheel
	mkdir -p build/wheel/elsewhere
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python $(INSTALL) constraints.txt build/wheel/*.whl
	cd build/wheel/elsewhere && ../venv/bin/safehead demo

# Times scans against loops by hand: a table here, JSON in build/benchmarks. About 20 minutes.
bench: .venv/ready
	$(BIN)/python benchmarks/scan.py
	$(BIN)/python benchmarks/interchange.py

# What screened scans miss, and what they cost. Trains thirteen organisms first. About an hour.
bench-screening: .venv/ready
	$(BIN)/python benchmarks/organisms.py
	$(BIN)/python benchmarks/screening.py

# Which score finds heads that are known to carry refusals. Trains 110 organisms first: hours.
bench-truth: .venv/ready
	mkdir -p build
	$(BIN)/safehead benchmark --processes 2 --cache build/ground-truth --json build/ground-truth.json --figure build/ground-truth.html

# Tests the paper's claims on the organism, and writes their table into docs/evaluation.md.
claims: .venv/ready
	$(BIN)/python examples/paper_claims.py --write

.PHONY: fuzz torture

# Looks for counterexamples to the properties in tests/properties, on models of every family and with
# new draws each time: some minutes. `make test` tries a few, the same each time.
fuzz: .venv/ready
	$(BIN)/python $(PYTEST) tests/properties --hypothesis-profile=fuzz

# Kills runs, damages what they wrote, and writes what became of it into docs/limits.md: some minutes.
torture: .venv/ready
	PYTHONPATH=tests $(BIN)/python -m torture --write

# Runs the notebooks, and draws every figure, the report and the live widget, with the packages that
# Google Colab has, in a .venv-colab of its own.
colab-check: .venv-colab/ready
	.venv-colab/bin/python $(PYTEST) --dist load --maxschedchunk 1 tests/notebooks tests/colab
	.venv-colab/bin/python examples/colab_check.py

# Times the way to the first picture where Colab's packages are, and safehead_tl is not.
first-picture: .venv-colab/ready
	rm -rf build/first-picture
	$(PYTHON) -m venv build/first-picture
	build/first-picture/bin/python $(INSTALL) .venv-colab/constraints.txt $(ON_COLAB)
	env -u PYTHONDONTWRITEBYTECODE PIP_CONSTRAINT=$(CURDIR)/.venv-colab/constraints.txt \
		build/first-picture/bin/python examples/first_picture.py

# Writes a log for Inspect AI, and reads it with its own reader, whose packages do not go with this
# lock: in a .venv-inspect of its own. It is no part of .ci/run.
inspect-check: .venv/ready
	$(PYTHON) -m venv .venv-inspect
	.venv-inspect/bin/python -m pip install --quiet --no-compile inspect-ai
	mkdir -p build/inspect
	$(BIN)/safehead evaluate demo --prompts demo/harmful --heads L1H3,L2H6 --max-new-tokens 24 --save build/inspect/e.safetensors
	$(BIN)/safehead browse build/inspect/e.safetensors --out build/inspect/e.html --inspect build/inspect/e.json
	.venv-inspect/bin/python tests/evaluation/inspect_reader.py build/inspect/e.json

# Opens report and attention view in a headless Chromium, which must be in PATH, and the live widget
# in a JupyterLab there.
browser-test: .venv/ready
	$(BIN)/python $(PYTEST) tests/browser

# Runs the notebooks top to bottom, and their exercises' checks against wrong answers. They are one
# file, and so are dealt out one by one.
notebook-test: .venv/ready
	$(BIN)/python $(PYTEST) --dist load --maxschedchunk 1 tests/notebooks

# Runs the code in README, docs and docstrings, holds their numbers against what is measured, and
# writes the documentation to build/docs. Whatever is broken in it, a link or a name, is an error.
docs: .venv/ready
	$(BIN)/python $(PYTEST) $(TYPED) tests/documentation
	$(BIN)/python -m sphinx -W --keep-going -n -E -q docs build/docs

# Asks the network whether links to other sites still lead somewhere. It is no part of .ci/run.
linkcheck: .venv/ready
	$(BIN)/python -m sphinx -n -q -b linkcheck docs build/linkcheck

# Grows the embedded organisms again, in place, and finds the truth about the natural one.
organism: .venv/ready
	$(BIN)/safehead train-organism safehead_tl/data/organism --overwrite
	$(BIN)/safehead train-organism build/natural --learning attention --objective none --base safehead_tl/data/organism --overwrite
	cp build/natural/aligned/* safehead_tl/data/natural
	$(BIN)/python benchmarks/natural_truth.py

# Writes the repository's address wherever it stands, and the notebooks' first cell; without URL as
# pyproject.toml has it.
address: .venv/ready
	$(BIN)/python docs/address.py $(URL)

# Writes the lock anew from what .venv holds.
lock:
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) constraints.txt --editable '.[dev]'
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python $(KEEP)
	touch $@

.venv-tl4/ready: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv .venv-tl4
	sed 's/^transformer-lens==.*/$(NEWEST)/' constraints.txt > .venv-tl4/constraints.txt
	.venv-tl4/bin/python $(INSTALL) .venv-tl4/constraints.txt --editable '.[test]'
	env -u PYTHONDONTWRITEBYTECODE .venv-tl4/bin/python $(KEEP)
	touch $@

# First what is on Colab before, and what pip would then do there, which a test reads.
.venv-colab/ready: pyproject.toml constraints.txt constraints-colab.txt Makefile
	$(PYTHON) -m venv .venv-colab
	grep -v ^torch= constraints-colab.txt | awk -F== 'NR == FNR {colab[$$1]; print; next} !($$1 in colab)' - constraints.txt > .venv-colab/constraints.txt
	.venv-colab/bin/python $(INSTALL) .venv-colab/constraints.txt $(ON_COLAB)
	.venv-colab/bin/python -m pip install --quiet --dry-run --report .venv-colab/report.json . 'transformer-lens==3.9.*'
	.venv-colab/bin/python $(INSTALL) .venv-colab/constraints.txt --editable . beartype nbclient pytest pytest-xdist
	env -u PYTHONDONTWRITEBYTECODE .venv-colab/bin/python $(KEEP)
	touch $@

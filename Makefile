# Every target makes the environment that it needs on first use; all that must be there is a python3 (3.11 or newer) and the network.
#   make demo     teacher -> student on the data in the repository, with a report (about 5 minutes on 2 cores)
#   make test     the test suite            make parity   comparison with real LeRobot 0.4.4 and 0.6.1, each in its environment
#   make lint     ruff and mypy             make lock     pins the newest versions of all dependencies
#   make slow     tests that take minutes: 20 kills at random moments, and what the benchmarks compute
#   make check    test and slow in one go, without what only repeats them: part of .ci/run, as is `make parity CHECK=1`
#   make fuzz     damaged and hostile checkpoints and datasets, 150 of each kind of file (CASES=N: so many)
#   make notebooks  the notebooks, each in a fresh kernel, into build/notebooks      make docs   the site, into build/site
#   make dist     sdist and wheel into dist/, and the wheel's commands in an environment of its own
#   make results  the experiments of docs/results.md, from nothing (what is there is not made again)
PYTHON ?= python3
BIN := .venv/bin
# LeRobot 0.4.4 with transformers 4, and LeRobot 0.6.1 with transformers 5.
PARITY := .venv-parity/bin
PARITY061 := .venv-parity061/bin
# What requirements.lock pins beside the package's own requirements.
EXTRAS := dev sim remote emulators tensorboard wandb serve notebooks docs
PIP_FLAGS := --quiet --disable-pip-version-check
# uv installs in seconds what takes pip a minute of processor time.
UV = $(1)/python -m pip install $(PIP_FLAGS) uv && $(1)/uv pip install --quiet --python $(1)/python
CHECK_PYTHON := $(PYTHON) -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo "make: $(PYTHON) must be Python 3.11 or newer with venv (Debian: python3-venv); or say make PYTHON=python3.12" >&2; exit 1; }

.PHONY: demo test lint slow check fuzz parity parity-0.4.4 parity-0.6.1 notebooks docs dist results lock clean
.DELETE_ON_ERROR:

demo: .venv/ready
	@echo "demo: reflow of the teacher in tests/assets/teacher on tests/assets/metaworld_mini, into runs/demo"
	$(BIN)/python train.py demo --output-dir runs/demo $(if $(wildcard runs/demo/checkpoints/last),--resume)

test: .venv/ready
	@echo "test: the test suite, on the CPU"
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/ready
	@echo "lint: style, then types"
	$(BIN)/ruff check .
	$(BIN)/mypy

slow: .venv/ready
	@echo "slow: the tests marked slow, but for the fuzz of make fuzz; 20 kills at random moments among them"
	$(BIN)/python -m pytest -m slow --deselect tests/fuzz/test_fuzz.py::test_many -n 2 --dist loadfile

check: .venv/ready
	@echo "check: all tests but those marked nightly"
	$(BIN)/python -m pytest -m "not nightly" -n 2 --dist loadfile --no-loadscope-reorder

fuzz: .venv/ready
	@echo "fuzz: files of checkpoints and datasets, damaged and forged; every one is read, or refused by name"
	FUZZ_CASES=$(or $(CASES),150) $(BIN)/python -m pytest tests/fuzz -m slow

parity: parity-0.4.4 parity-0.6.1
	$(PARITY)/python -m tests.parity.report

parity-0.4.4: .venv-parity/ready
	@echo "parity: jaxreflow against LeRobot 0.4.4 in PyTorch; build/parity.json keeps what was measured"
	$(PARITY)/python -m pytest tests/parity $(if $(CHECK),-m "not slow and not nightly")

parity-0.6.1: .venv-parity061/ready
	@echo "parity: jaxreflow against LeRobot 0.6.1 in PyTorch; build/parity.json keeps what was measured"
	$(PARITY061)/python -m pytest tests/parity $(if $(CHECK),-m "not slow and not nightly")

notebooks: .venv/ready
	@echo "notebooks: each in a fresh kernel; an error, or anything on stderr, fails (python notebooks/execute.py --write keeps the outputs)"
	$(BIN)/python notebooks/execute.py

docs: .venv/ready
	@echo "docs: the site in build/site; a warning fails"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The wheel is built from the sdist; one from the working tree must have the same bytes, so that the sdist lacks nothing.
dist: .venv/ready
	@echo "dist: sdist and wheel into dist/; the wheel, installed alone, is tried from an empty folder"
	rm -rf dist build/dist-tree build/dist-venv build/dist-try
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m build --wheel --outdir build/dist-tree .
	cmp dist/*.whl build/dist-tree/*.whl
	$(PYTHON) -m venv build/dist-venv
	build/dist-venv/bin/pip install $(PIP_FLAGS) dist/*.whl
	mkdir build/dist-try
	sh tests/try_installed.sh build/dist-venv/bin build/dist-try dist tests/assets/teacher

results: .venv/ready
	@echo "results: data, teachers, students, reports and closed loops into runs; tables and pictures into docs"
	$(BIN)/python -m benchmarks.recipe
	$(BIN)/python -m benchmarks.recipe --study width --root runs/metaworld
	for study in latency compact rival aloha; do $(BIN)/python -m benchmarks.recipe --study $$study || exit 1; done

.venv/ready: requirements.lock
	@$(CHECK_PYTHON)
	@echo "making .venv: JAX and everything else that requirements.lock pins (about a minute)"
	$(PYTHON) -m venv --clear .venv
	$(call UV,$(BIN)) -r requirements.lock
	# The real client of the policy server, which asks for numpy 1.
	$(BIN)/pip install $(PIP_FLAGS) --no-deps openpi-client==0.1.2 dm-tree==0.1.10
	$(BIN)/pip install $(PIP_FLAGS) --no-deps --no-build-isolation --editable .
	@touch $@

# tests/parity/adapt_packages.py says what it changes in an installed LeRobot and torchvision, and why.
.venv-parity/ready: requirements-parity.lock tests/parity/adapt_packages.py
	@$(CHECK_PYTHON)
	@echo "making .venv-parity: PyTorch, LeRobot 0.4.4 and JAX side by side (a few minutes)"
	$(PYTHON) -m venv --clear .venv-parity
	$(PARITY)/pip install $(PIP_FLAGS) torch==2.13.0
	$(call UV,$(PARITY)) --constraint requirements-parity.lock --editable '.[parity,dev]'
	# LeRobot asks for an older torch and a dozen packages that SmolVLA never imports; torchvision's wheel for a CUDA build.
	$(PARITY)/pip install $(PIP_FLAGS) --no-deps lerobot==0.4.4 torchvision==0.28.0
	$(PARITY)/python tests/parity/adapt_packages.py
	@touch $@

# LeRobot 0.6.1 asks for Python 3.12, but also runs on Python 3.11 once its packages are adapted.
.venv-parity061/ready: requirements-parity061.lock tests/parity/adapt_packages.py
	@$(CHECK_PYTHON)
	@echo "making .venv-parity061: PyTorch, LeRobot 0.6.1 and JAX side by side (a few minutes)"
	$(PYTHON) -m venv --clear .venv-parity061
	$(PARITY061)/pip install $(PIP_FLAGS) torch==2.13.0
	$(call UV,$(PARITY061)) --constraint requirements-parity061.lock --editable '.[parity061,dev]'
	$(PARITY061)/pip install $(PIP_FLAGS) --no-deps --no-compile --ignore-requires-python lerobot==0.6.1 torchvision==0.28.0
	# One file of it is the published rival's loss, which needs PyTorch only.
	$(PARITY061)/pip install $(PIP_FLAGS) --no-deps --no-compile --ignore-requires-python physicalai-train==0.3.0
	$(PARITY061)/python tests/parity/adapt_packages.py
	$(PARITY061)/pip install $(PIP_FLAGS) --no-deps --no-build-isolation --editable plugins/lerobot_policy_jaxreflow
	@touch $@

lock: .venv/ready
	$(BIN)/pip install $(PIP_FLAGS) uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 $(EXTRAS:%=--extra %) --no-emit-index-url --no-header --no-annotate \
		pyproject.toml --output-file requirements.lock
	$(PARITY)/pip freeze --exclude-editable --exclude torch --exclude torchvision --exclude lerobot --exclude uv > requirements-parity.lock
	$(PARITY061)/pip freeze --exclude-editable --exclude torch --exclude torchvision --exclude lerobot --exclude physicalai-train --exclude uv > requirements-parity061.lock

clean:
	rm -rf build dist .venv .venv-parity .venv-parity061 .mypy_cache .pytest_cache .ruff_cache

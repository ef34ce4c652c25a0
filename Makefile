# make train   from a fresh clone to a trained Cascade Mask R-CNN
# make test    the fast tests, WORKERS=2 at a time;  make test-slow  all of them
# make lint    style and the borders between the rooms;  make docs  the site, in site/
# make matrix  nox: the fast tests on other versions of Python and of the packages; docs/versions.md
# make bench   whole images and training steps beside stock code;  bench-smoke, -data, -evaluation, -scale, -gpu; docs/performance.md
# make bench-parity ARGS='det --seeds 12'   our backbone beside mmpretrain's, trained in pairs; docs/parity.md
#
# The first use makes .venv and installs the pinned set of constraints.txt. To use an environment of your own:
#   pip install -e '.[mm,dev,docs]'   and then   make train PYTHON=python

VENV := .venv
PEERS := .peers
WORKERS := 2
PYTHON := $(VENV)/bin/python
# the newest Python >= 3.10 on the path
BASE_PYTHON := $(shell for v in 3.13 3.12 3.11 3.10 3; do p=$$(command -v python$$v) && \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)

ifeq ($(PYTHON),$(VENV)/bin/python)
INSTALLED := $(VENV)/installed
endif

.PHONY: train test test-slow matrix lint docs bench bench-smoke bench-data bench-evaluation bench-scale bench-gpu bench-parity
train: $(INSTALLED)
	$(PYTHON) tools/train.py configs/det/cascade_convnext_atto_shapes.py

test: $(INSTALLED)
	$(PYTHON) -m pytest -n $(WORKERS)

test-slow: $(INSTALLED)
	$(PYTHON) -m pytest -n $(WORKERS) -m 'slow or not slow'

# nox makes its own environments: pipx install nox
matrix:
	nox

lint: $(INSTALLED)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'

docs: $(INSTALLED)
	$(PYTHON) -m mkdocs build --strict --quiet

bench: $(INSTALLED) $(PEERS)/installed
	PYTHONPATH=$(CURDIR)/$(PEERS):$$PYTHONPATH $(PYTHON) benchmarks/speed.py $(ARGS)

bench-smoke: $(INSTALLED) $(PEERS)/installed
	PYTHONPATH=$(CURDIR)/$(PEERS):$$PYTHONPATH $(PYTHON) benchmarks/speed.py image seg-image --smoke

bench-data: $(INSTALLED)
	$(PYTHON) benchmarks/data.py

bench-evaluation: $(INSTALLED)
	$(PYTHON) benchmarks/evaluation.py $(ARGS)

bench-scale: $(INSTALLED)
	$(PYTHON) benchmarks/scale.py

# the ops on the GPU, then images and steps, then a training of 200 steps in mixed precision
bench-gpu: $(INSTALLED) $(PEERS)/installed
	$(PYTHON) -m pytest tests/test_compat_ops*.py -k cuda
	PYTHONPATH=$(CURDIR)/$(PEERS):$$PYTHONPATH $(PYTHON) benchmarks/speed.py image step seg-image seg-step
	$(PYTHON) tools/train.py configs/det/cascade_convnext_atto_shapes.py --amp --profile --work-dir work_dirs/bench_gpu \
		--cfg-options train_cfg.max_epochs=2 train_cfg.val_interval=2

bench-parity: $(INSTALLED) $(PEERS)/installed
	PYTHONPATH=$(CURDIR)/$(PEERS):$$PYTHONPATH OMP_NUM_THREADS=1 $(PYTHON) benchmarks/parity.py $(ARGS)

# beside the environment, not in it: mmdet imports mmpretrain wherever it finds it
$(PEERS)/installed:
	$(PYTHON) -m pip install --disable-pip-version-check --quiet --no-deps --target $(PEERS) \
		mmpretrain==1.2.0 model-index==0.1.11 einops==0.8.2 importlib_metadata==6.8.0 zipp==4.1.2 ordered-set==4.1.0 \
		markdown==3.11.3
	@touch $@

$(VENV)/installed: setup.py constraints.txt
	@test -n "$(BASE_PYTHON)" || { echo "error: no Python >= 3.10 with venv and pip found (Debian: apt install python3-venv); or set PYTHON=" >&2; exit 2; }
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || $(BASE_PYTHON) -m venv --clear $(VENV)
	$(PYTHON) -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[mm,dev,docs]'
	@# OpenCV's desktop build needs libGL, which a bare server does not have
	@$(PYTHON) -c 'import cv2' 2>/dev/null || $(PYTHON) -m pip install --disable-pip-version-check --quiet \
		--force-reinstall --no-deps -c constraints.txt opencv-python-headless
	@touch $@

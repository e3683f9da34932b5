# The daily commands. ./bootstrap.sh install makes .venv with what they need.
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest -n auto --maxprocesses 8 --dist loadfile
.PHONY: check docs notebooks test coverage test-all test-gpu style golden format bench bench-gpu gpu-pass constraints

check: ## ruff, mypy, the layers of the design (import-linter), dead code (vulture)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports
	$(PYTHON) -m vulture

test: ## everything that is quick, in under ten minutes on two cores
	$(PYTEST) -m "not slow and not gpu"

coverage: ## the quick tests, and which lines of the library they run
	$(PYTEST) -m "not slow and not gpu" --cov=behavegpt --cov-report=term:skip-covered

test-all: ## also what takes minutes
	$(PYTEST) -m "not gpu"

test-gpu: ## what needs a CUDA device
	$(PYTHON) -m pytest -m gpu

docs: ## the site of mkdocs.yml in site/; a broken link or an unlisted page is an error (./bootstrap.sh docs installs it)
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build -q --strict

notebooks: ## run notebooks/*.ipynb and keep what they print and draw; minutes
	$(PYTHON) tools/notebooks.py

style: ## lengths, comments, docstrings, ... of the library as a table; --list MEASURE names the places
	$(PYTHON) tools/style_counts.py

golden: ## rewrite tests/golden/*.json on purpose: the values that a change of behavior has moved; say why in the commit
	OMP_NUM_THREADS=1 $(PYTHON) -m tests.golden

format: ## rewrite the files in the project's style
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

MODEL := runs/demo/model
LOG := behavegpt/demo/online_retail.parquet
runs/demo/model/config.json:
	$(PYTHON) -m behavegpt demo

bench: $(MODEL)/config.json ## preparation and training against their peers, starting, serving and states of MODEL on LOG; see benchmarks/
	$(PYTHON) benchmarks/prepare.py
	$(PYTHON) benchmarks/train.py
	$(PYTHON) benchmarks/start.py $(MODEL) --log $(LOG)
	$(PYTHON) benchmarks/serve.py $(MODEL) --log $(LOG)
	$(PYTHON) benchmarks/states.py $(MODEL) --log $(LOG)

bench-gpu: ## training on this GPU: events/s, utilisation, memory, parts; see benchmarks/README.md
	$(PYTHON) benchmarks/gpu.py

gpu-pass: ## all that needs a GPU to be believed, in nine minutes; rows in benchmarks/results/gpu_pass.jsonl
	$(PYTHON) benchmarks/gpu_pass.py

constraints: ## pin what is installed now as the CPU set
	$(PYTHON) -m uv pip freeze -p $(PYTHON) --exclude-editable | sed 's/+cpu$$//' | grep -viE '^(pip|uv|setuptools)==' > constraints/cpu.txt

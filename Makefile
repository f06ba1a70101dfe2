# Every target is complete on a fresh machine with Python 3.11. Variables come
# in as data: `override NAME := $(value NAME)` keeps make from expanding the `$`
# of a prompt, and the recipes read them from the environment, so the shell does
# not either.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
override PROMPT := $(value PROMPT)
override OUT := $(value OUT)
override SEED := $(value SEED)
override PORT := $(value PORT)
override TORCH_INDEX := $(value TORCH_INDEX)
export PROMPT OUT SEED PORT TORCH_INDEX
export HF_HUB_DISABLE_TELEMETRY := 1

BIN := .venv/bin
MODULES := tilemix miniature tools predict.py bench tests
# Two processes of one torch thread each: two of two threads would wait for one another on two cores. Where Python is
# told to write no bytecode, as in many containers, every process of the suite would compile its modules again.
PYTEST_ENVIRONMENT := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
PYTEST_OPTIONS := --numprocesses=2 --dist=loadfile

.PHONY: help prompt-given predict test test-quick check format serve studio soak bench gpu-wheels schema test-pins clean \
	miniature miniature-vae miniature-base miniature-adapters miniature-report training-pictures

help: ## these lines
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / { printf "%-18s %s\n", $$1, $$2 }' Makefile

# Before the environment is made, which takes minutes.
prompt-given:
	@test -n "$$PROMPT" || { echo 'usage: make predict PROMPT="50% red, 30% black, 20% pearl" [OUT=tile.png] [SEED=n]' >&2; exit 2; }

predict: prompt-given .venv/ready ## PROMPT="50% red, 30% black, 20% pearl" [OUT=tile.png] [SEED=n]
	@$(BIN)/tilemix predict -o "$${OUT:-tile.png}" $${SEED:+--seed="$$SEED"} -- "$$PROMPT"

test: .venv/ready ## the whole suite, under 10 minutes on 2 cores
	@$(PYTEST_ENVIRONMENT) $(BIN)/python -m pytest $(PYTEST_OPTIONS)

test-quick: .venv/ready ## what tells whether each module works, under 90 seconds on 2 cores
	@$(PYTEST_ENVIRONMENT) $(BIN)/python -m pytest $(PYTEST_OPTIONS) -m "not slow"

check: .venv/ready ## lint, format, types
	@$(BIN)/ruff check $(MODULES)
	@$(BIN)/ruff format --check $(MODULES)
	@$(BIN)/mypy

format: .venv/ready
	@$(BIN)/ruff check --fix-only $(MODULES)
	@$(BIN)/ruff format $(MODULES)

# The server starts its worker as `python`, so the environment's bin comes first in PATH.
serve: .venv/ready ## the real Cog server without Docker, on 127.0.0.1 [PORT=5000]
	@PATH="$(CURDIR)/$(BIN):$$PATH" PORT="$${PORT:-5000}" COG_PREDICT_TYPE_STUB=predict.py:Predictor \
		exec $(BIN)/python -m cog.server.http --host 127.0.0.1

studio: .venv/ready ## the server and the studio with its web page, on 127.0.0.1 [PORT=8000]
	@TILEMIX_STUDIO_PORT="$${PORT:-8000}" exec $(BIN)/python -m tilemix.studio --with-server

soak: .venv/ready ## the long kill, load and fuzz runs; their figures go into docs/RELIABILITY.md
	@$(BIN)/python -m tests.soak

bench: .venv/ready ## speed against two peers, under 15 minutes on 2 quiet cores; writes bench/REPORT.md
	@TRANSFORMERS_VERBOSITY=error exec $(BIN)/python -m bench.speed

# pip matches a platform's name exactly, so each one that wheels are built for is named.
gpu-wheels: .venv/ready ## what bench/gpu.sh needs on a machine with a GPU: build/gpu-wheels, 60 MB at most
	@rm -rf build/gpu-wheels
	@$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version=3.12 \
		$(foreach tag,manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1,--platform=$(tag)_x86_64) \
		--dest=build/gpu-wheels -r bench/gpu/requirements.txt
	@du --apparent-size --block-size=1MB --summarize build/gpu-wheels
	@test $$(du --apparent-size --block-size=1MB --summarize build/gpu-wheels | cut -f1) -le 60

schema: .venv/ready ## rewrite .cog/openapi_schema.json from predict.py, and the inputs in tilemix/studio/openapi.json
	@$(BIN)/python -m tools.cog_schema
	@$(BIN)/python -m tools.studio_schema

test-pins: .venv-pins/ready ## the suite in the container's environment: 5.6 GB
	@$(PYTEST_ENVIRONMENT) .venv-pins/bin/python -m pytest $(PYTEST_OPTIONS)

# glibc gives large blocks back to the system and takes them again each step: with these a step of the
# VAE took 0.37 s, without them 0.53 s.
TRAIN := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456 \
	$(BIN)/python -m miniature

miniature: miniature-vae miniature-base miniature-adapters miniature-report ## train the embedded model; each stage goes on where it stopped

miniature-vae: .venv/ready
	@$(TRAIN) vae
	@$(TRAIN) decoder

miniature-base: .venv/ready
	@$(TRAIN) base
	@$(TRAIN) export
	@$(BIN)/tilemix weights lock miniature

miniature-adapters: .venv/ready
	@$(TRAIN) adapters
	@$(BIN)/tilemix weights lock miniature

training-pictures: .venv/ready ## 20 pictures with captions to try tilemix train on, into build/my-tile/
	@$(BIN)/python -m miniature pictures

miniature-report: .venv/ready ## measure the committed weights; REPORT.md and its sheets beside them
	@$(BIN)/python -m bench.miniature --write

clean: ## the environments; build/ holds hours of training and stays
	rm -rf .venv .venv-pins

# torch comes first and alone: TORCH_INDEX=https://download.pytorch.org/whl/cpu
# takes the CPU build (200 MB) where the default index has the CUDA build (3 GB).
# compat: a line in a .pth file, found in every folder. The default, an import hook, comes after the folder where Python
# was started, and that may hold this clone as `tilemix`.
.venv/ready: requirements-dev.txt requirements-ray.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and f"Python 3.11 needed, found {sys.version.split()[0]}; use PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check $${TORCH_INDEX:+--index-url="$$TORCH_INDEX"} "$$(grep '^torch==' requirements-dev.txt)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable . --config-settings editable_mode=compat
	@touch $@

# tilemix itself is not installed there, as in the image: it lies in the working folder.
.venv-pins/ready: requirements.txt requirements-dev.txt
	@test -x .venv-pins/bin/pip || $(PYTHON) -m venv --clear .venv-pins
	@.venv-pins/bin/pip install --quiet --disable-pip-version-check -r requirements.txt \
		$$(grep -E '^(alembic|Babel|blake3|cog|httpcore|httpx|hypothesis|Jinja2|peft|psycopg|pytest|pytest-xdist|python-multipart|PyYAML|schemathesis|scipy|SQLAlchemy|standardwebhooks|starlette|uvicorn)(\[[a-z]*\])?==' requirements-dev.txt)
	@touch $@

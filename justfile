# Everything a user or CI runs. `just` itself is installed into the same environment (see README), so recipes use .venv.
set shell := ["bash", "-euo", "pipefail", "-c"]

export PATH := justfile_directory() / ".venv/bin:" + env("PATH")

all_extras := "pipeline,trainer,metrics,pdf,ray,s3,dev"

# list the recipes
default:
    @just --list

# install what `extras` names, pinned; torch first, so that nothing pulls another build. Does nothing when it is done
install extras="pipeline,trainer,metrics":
    #!/usr/bin/env bash
    set -euo pipefail
    stamp=".venv/.installed-{{extras}}-$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)"
    [ -e "$stamp" ] && exit 0
    echo "installing [{{extras}}] (once)" >&2
    pip() { python -m pip install -q --disable-pip-version-check -c constraints.txt "$@"; }
    pip "$(grep '^torch==' constraints.txt)"
    pip -e ".[{{extras}}]"
    touch "$stamp"

# from a clone to a trained checkpoint: 2,000 rendered molecules, shards, and a micro model on two processes
demo: install
    pipeline render-chem --smiles sample --n 2000 --mode micro --out raw/rendered/chem-demo
    pipeline train-tokenizer --recipe demo --vocab-size 512 --out raw/demo-tokenizer.json
    pipeline build-shards --recipe demo
    pipeline verify shards/demo
    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 trainer/train.py --shards shards/demo --out runs/demo --resume --on-collapse warn
    python trainer/plot.py runs/demo
    python trainer/evaluate.py --shards shards/demo --checkpoint runs/demo --limit 8 --examples 8 --max-new-tokens 96

# lint, types and all quick tests; what the time limit of a test cannot interrupt ends its process, with all stacks
test: (install all_extras)
    ruff check .
    mypy
    python -m pytest -n 2 --dist loadfile -o faulthandler_timeout=1200 -o faulthandler_exit_on_timeout=true

# the long fault and scale runs
test-slow: (install all_extras)
    python -m pytest -m slow --timeout 3600

# a model that reads pictures it has never seen: strings, then molecules carried over; under 30 minutes on two cores
read *args: install
    python -m benchmarks.reading {{args}}

# benchmarks beside peers into benchmarks/RESULTS.md: all of them (about half an hour), or `just bench packing`
bench *name_and_options: (install all_extras)
    python -m benchmarks {{name_and_options}}

# which data is better: the same model on two recipes or more, for the same target tokens, on one validation set
ablate *args: install
    python -m benchmarks.ablate {{args}}

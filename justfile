# Everything a user or CI runs. `just` itself is installed into the same environment (see README), so recipes use .venv.
set shell := ["bash", "-euo", "pipefail", "-c"]

py := ".venv/bin/python"

# list the recipes
default:
    @.venv/bin/just --list

# install what `extras` name, pinned; torch first, so that nothing pulls another build. Does nothing when it is done
install extras="pipeline,trainer,metrics":
    #!/usr/bin/env bash
    set -euo pipefail
    stamp=".venv/.installed-$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)-{{extras}}"
    [ -e "$stamp" ] && exit 0
    echo "installing [{{extras}}] (once)" >&2
    {{py}} -m pip install -q --disable-pip-version-check -c constraints.txt "$(grep '^torch==' constraints.txt)"
    {{py}} -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[{{extras}}]"
    touch "$stamp"

# from clone to a trained checkpoint: renders 2,000 molecules, builds and verifies shards, trains the micro model on two processes
demo: install
    {{py}} -m benchmarks.demo

# all tests, lint and types
test: (install "pipeline,trainer,metrics,pdf,ray,s3,dev")
    .venv/bin/ruff check .
    .venv/bin/mypy
    {{py}} -m pytest -n 2 --dist loadfile

# the long fault and scale runs
test-slow: (install "pipeline,trainer,metrics,pdf,ray,s3,dev")
    {{py}} -m pytest -m slow --timeout 3600


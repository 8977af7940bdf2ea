#!/bin/sh
# Lint, format, types, tests, in this order and up to the first failure. Arguments go to pytest: sh tests/run.sh -k masks
# Uses .venv, which it makes if there is none; PYTHON chooses the interpreter for that (default: python3).
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."

[ -x .venv/bin/pip ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install -q -e '.[dev]'

PATH=$PWD/.venv/bin:$PATH
export PATH

ruff check .
ruff format --check .
mypy
python -m pytest -n auto --dist worksteal "$@"

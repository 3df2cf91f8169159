#!/bin/sh
# Runs the checks and the tests, set-up included. Arguments go to pytest: sh scripts/test.sh tests/test_matching.py
set -eu
cd "$(dirname "$0")/.."
. scripts/set_up.sh

ruff check .
python -m pytest "$@"

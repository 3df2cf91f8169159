#!/bin/sh
# Runs the checks and the tests, two files at a time, set-up included. Arguments go to pytest: sh scripts/test.sh -k reservoir
set -eu
cd "$(dirname "$0")/.."
. scripts/set_up.sh

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"   # two processes of two threads wait for each other on two cores
ruff check .
python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"

#!/bin/sh
# Runs the checks and the tests, two files at a time, set-up included. Arguments go to pytest: sh scripts/test.sh -k reservoir
# CONSTRAINTS=oldest sh scripts/test.sh takes the oldest supported version of every package.
set -eu
cd "$(dirname "$0")/.."
REQUIREMENTS=requirements-test.txt
. scripts/set_up.sh

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"   # two processes of two threads wait for each other on two cores
ruff check .
python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"

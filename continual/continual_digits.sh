#!/bin/sh
# The continual comparison on digits, 5 tasks of 2 classes: the settings of continual/continual.sh that were chosen for it.
# Needs the distilled set and the random real images that distillation/gen_syn_image_digits.sh makes. Further flags are passed
# on: sh continual/continual_digits.sh --merge magmax
set -eu
cd "$(dirname "$0")/.."

RUN=${RUN:-runs/digits}
IPC=${IPC:-10}
export DATASET=digits
export DISTILLED="${DISTILLED:-$RUN/distilled/digits_ipc${IPC}_${IPC}_s0.3_g2.0_kmexpand1}"
export RANDOM_REAL="${RANDOM_REAL:-$RUN/distilled/digits_random_ipc$IPC}"
export OUTPUT_DIR="${OUTPUT_DIR:-$RUN/continual-ipc$IPC}"
export STREAMS="${STREAMS:-real random distilled}"
export SEEDS="${SEEDS:-${SEED:-0}}"
export SCHEDULE="${SCHEDULE:-steps}"
export TASK_STEPS="${TASK_STEPS:-42 14 14}"         # per task, in the order of STREAMS: the small sets take a third
export BUFFER_SIZE="${BUFFER_SIZE:-100}"            # images: ten a class
export BATCH_SIZE="${BATCH_SIZE:-16}"
export REPLAY_BATCH_SIZE="${REPLAY_BATCH_SIZE:-48}" # thrice the stream's: with equal shares ER forgets three times as much
export COMPARISON="${COMPARISON-}"                  # `python -m misc.report run` shows these runs; COMPARISON=<folder> compares them
exec sh continual/continual.sh "$@"

#!/bin/sh
# The continual comparison on digits, 5 tasks of 2 classes: method x source x seed, one folder each, finished ones skipped.
# Needs the distilled set and the random real images that distillation/gen_syn_image_digits.sh makes. Further flags are passed
# on: sh continual/continual_digits.sh --merge magmax
set -eu
cd "$(dirname "$0")/.."

RUN=${RUN:-runs/digits}
IPC=${IPC:-10}
DISTILLED=${DISTILLED:-$RUN/distilled/digits_ipc${IPC}_${IPC}_s0.3_g2.0_kmexpand1}
RANDOM_REAL=${RANDOM_REAL:-$RUN/distilled/digits_random_ipc$IPC}
OUTPUT_DIR=${OUTPUT_DIR:-$RUN/continual-ipc$IPC}
METHODS=${METHODS:-finetune joint er agem task_arithmetic}
STREAMS=${STREAMS:-real random distilled}
SEEDS=${SEEDS:-${SEED:-0}}
TASK_STEPS=${TASK_STEPS:-42 14 14}       # per task, in the order of STREAMS: the small sets take a third
TASKS=${TASKS:-5}
BUFFER_SIZE=${BUFFER_SIZE:-100}          # images: ten a class
BATCH_SIZE=${BATCH_SIZE:-16}
REPLAY_BATCH_SIZE=${REPLAY_BATCH_SIZE:-48}  # thrice the stream's: with equal shares ER forgets three times as much

# shellcheck disable=SC2086  # lists of words
python -m continual.train_continual \
    --method $METHODS \
    --stream $STREAMS \
    --seed $SEEDS \
    --dataset digits \
    --distilled "$DISTILLED" \
    --random "$RANDOM_REAL" \
    --tasks "$TASKS" \
    --steps $TASK_STEPS \
    --batch-size "$BATCH_SIZE" \
    --replay-batch-size "$REPLAY_BATCH_SIZE" \
    --buffer-size "$BUFFER_SIZE" \
    --output-dir "$OUTPUT_DIR" \
    "$@"

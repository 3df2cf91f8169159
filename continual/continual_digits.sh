#!/bin/sh
# The continual comparison on digits: method x source x seed, one folder each under $OUTPUT_DIR, finished ones skipped.
# Needs a distilled set of digits ($DISTILLED, from distillation/gen_syn_image_digits.sh).
set -eu
cd "$(dirname "$0")/.."

DISTILLED=${DISTILLED:-runs/digits/distilled-ipc10}
OUTPUT_DIR=${OUTPUT_DIR:-runs/digits/continual-ipc10}
METHODS=${METHODS:-finetune joint er agem task_arithmetic}
STREAMS=${STREAMS:-real random distilled}
STEPS=${STEPS:-35 14 14}         # per task, in the order of STREAMS: real sees its images four times
SEEDS=${SEEDS:-0 1 2}
TASKS=${TASKS:-5}
BUFFER_SIZE=${BUFFER_SIZE:-100}  # images: 10 a class, the whole distilled set at IPC 10

# shellcheck disable=SC2086  # lists of words on purpose
python -m continual.train_continual \
    --method $METHODS --stream $STREAMS --seed $SEEDS \
    --dataset digits --distilled "$DISTILLED" --tasks "$TASKS" \
    --steps $STEPS --buffer-size "$BUFFER_SIZE" \
    --output-dir "$OUTPUT_DIR" "$@"

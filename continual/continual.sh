#!/bin/sh
# The continual comparison on any data set: method x source x seed, a folder with one result file each, finished ones skipped,
# and then the comparison of all runs in OUTPUT_DIR. The same command resumes; any subset can be asked for, in any order:
#   DATASET=cifar10 DATA_DIR=data/cifar10 DISTILLED=runs/cifar10-ipc10 METHODS="er agem" SEEDS="0 1 2" sh continual/continual.sh
# Further flags are passed on: sh continual/continual.sh --arch resnet50
set -eu
cd "$(dirname "$0")/.."

DATASET=${DATASET:-digits}
DATA_DIR=${DATA_DIR:-data}
DISTILLED=${DISTILLED:-}                 # folder of the distilled set; without it real streams alone
RANDOM_REAL=${RANDOM_REAL:-}             # folder of random real images (default: drawn by the seed, as many as distilled)
TEACHER=${TEACHER:-}                     # folder of a teacher, for soft labels
OUTPUT_DIR=${OUTPUT_DIR:-runs/continual-$DATASET}
METHODS=${METHODS:-finetune joint er agem derpp task_arithmetic}
if [ -n "$DISTILLED" ]; then ALL=" random distilled"; else ALL=; fi
STREAMS=${STREAMS:-real$ALL}
SEEDS=${SEEDS:-0 1 2}
LABELS=${LABELS:-hard}                   # hard, soft or both
SOFT_STREAMS=${SOFT_STREAMS:-random distilled}
SCHEDULE=${SCHEDULE:-epochs}             # epochs, steps or budget: what every stream of the comparison is given
EPOCHS=${EPOCHS:-2}                      # one value, or one per stream in the order of STREAMS
TASK_STEPS=${TASK_STEPS:-}               # per task, instead of epochs: the same
BUDGET_SECONDS=${BUDGET_SECONDS:-}       # per task, instead of epochs
SAME_STEPS=${SAME_STEPS:-}               # per task: real streams once more with so many steps, those of the small sets
TASKS=${TASKS:-5}
BUFFER_SIZE=${BUFFER_SIZE:-200}
BATCH_SIZE=${BATCH_SIZE:-32}
REPLAY_BATCH_SIZE=${REPLAY_BATCH_SIZE:-32}
COMPARISON=${COMPARISON-$OUTPUT_DIR/comparison}   # empty: no comparison

case $SCHEDULE in
    epochs) LENGTH=--epochs VALUES=$EPOCHS ;;
    steps) LENGTH=--steps VALUES=$TASK_STEPS ;;
    budget) LENGTH="--schedule budget --budget-seconds" VALUES=$BUDGET_SECONDS ;;
    *) echo "SCHEDULE: expected epochs, steps or budget, found $SCHEDULE" >&2; exit 2 ;;
esac

train() {
    # shellcheck disable=SC2086  # lists of words
    ${LAUNCH:-python} -m continual.train_continual \
        --method $METHODS \
        --seed $SEEDS \
        --dataset "$DATASET" \
        --data-dir "$DATA_DIR" \
        ${DISTILLED:+--distilled "$DISTILLED"} \
        ${RANDOM_REAL:+--random "$RANDOM_REAL"} \
        --tasks "$TASKS" \
        --batch-size "$BATCH_SIZE" \
        --replay-batch-size "$REPLAY_BATCH_SIZE" \
        --buffer-size "$BUFFER_SIZE" \
        "$@"
}

# shellcheck disable=SC2086  # lists of words
for KIND in $LABELS; do
    if [ "$KIND" = hard ]; then
        train --stream $STREAMS $LENGTH $VALUES --output-dir "$OUTPUT_DIR" "$@"
    else    # the small sets' length is the last of the list
        train --stream $SOFT_STREAMS $LENGTH "${VALUES##* }" --labels "$KIND" --teacher "$TEACHER" \
            --output-dir "$OUTPUT_DIR" "$@"
    fi
done
if [ -n "$SAME_STEPS" ]; then
    train --stream real --steps "$SAME_STEPS" --output-dir "$OUTPUT_DIR/same-steps" "$@"
fi
if [ -n "$COMPARISON" ]; then
    python -m misc.report compare "$OUTPUT_DIR" --output "$COMPARISON"
fi

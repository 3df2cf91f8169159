#!/bin/sh
# Stage 5: METHODS x STREAMS x SEEDS, a folder in OUTPUT_DIR each, and then their comparison. DISTILLED= (empty) trains on
# the real stream only; Task Arithmetic then needs --start task1. The same command resumes; any part can be run, in any order:
#   DATASET=cifar10 METHODS="er agem" SEEDS="0 1 2" sh continual/continual.sh --arch resnet50
set -eu
cd "$(dirname "$0")/.."
. scripts/settings.sh

METHODS=${METHODS:-finetune joint er agem derpp task_arithmetic}
STREAMS=${STREAMS:-real${DISTILLED:+ random distilled}}
STREAM_LABELS=${STREAM_LABELS:-hard}     # hard, soft (labels of TEACHER), or "hard soft"
SAME_STEPS=${SAME_STEPS:-}               # per task: real streams once more with as many steps as the small sets

case $SCHEDULE in                        # each value per task: one, or one per stream in the order of STREAMS
    epochs) LENGTH=--epochs VALUES=${TASK_EPOCHS:-} ;;
    steps) LENGTH=--steps VALUES=${TASK_STEPS:-} ;;
    *) echo "SCHEDULE: expected epochs or steps, found $SCHEDULE" >&2; exit 2 ;;
esac
case $STREAMS in                         # one stream: the first value is for real, the last for random and distilled
    real) OWN=${VALUES%% *} ;;
    random | distilled) OWN=${VALUES##* } ;;
    *) OWN=$VALUES ;;
esac

train() {
    # shellcheck disable=SC2086  # lists of words
    $LAUNCH -m continual.train_continual \
        --method $METHODS --seed $SEEDS --tasks "$TASKS" --dataset "$DATASET" --data-dir "$DATA" \
        ${PROMPTS:+--label_file_path "$PROMPTS"} \
        ${VALIDATION:+--validation "$VALIDATION"} ${VAL_LABELS:+--val_labels "$VAL_LABELS"} \
        ${DISTILLED:+--distilled "$DISTILLED"} ${RANDOM_REAL:+--random "$RANDOM_REAL"} \
        --batch-size "$BATCH_SIZE" --replay-batch-size "$REPLAY_BATCH_SIZE" --buffer-size "$BUFFER_SIZE" \
        --labels "$KIND" ${LABELLER:+--teacher "$LABELLER"} \
        "$@"
}

# shellcheck disable=SC2086  # lists of words
for KIND in $STREAM_LABELS; do
    case $KIND in hard) LABELLER= ;; *) LABELLER=$TEACHER ;; esac
    train --stream $STREAMS $LENGTH $OWN --output-dir "$OUTPUT_DIR" "$@"
    [ -z "$SAME_STEPS" ] || train --stream real --steps "$SAME_STEPS" --output-dir "$OUTPUT_DIR/same-steps" "$@"
done
[ -z "$COMPARISON" ] || python -m misc.report compare "$OUTPUT_DIR" --output "$COMPARISON"

#!/bin/sh
# Stage 4: a student trained on DISTILLED (empty: on the real training images) with LABELS soft or hard, tested on real images.
# scripts/settings/ has the paper's accuracies. Computed at 20 TFLOP/s, 300 epochs, IPC 50: ImageNet-1K 2.5 / 5 / 10 hours for
# ResNet-18 / 50 / 101 (IPC 10: a fifth), Tiny-ImageNet 33 minutes for ResNet-18, CIFAR-10 and CIFAR-100 a minute and 4 minutes.
# Several GPUs divide every batch: good for the batch of 1,024 of PROTOCOL=d4m, not for the 100 of PROTOCOL=rded.
set -eu
cd "$(dirname "$0")/.."
. scripts/settings.sh

case $LABELS-$PROTOCOL in       # "$@" stays last, so that its flags win
soft-rded)
    set -- --teacher-arch "$TEACHER_ARCH" --teacher-stem "$TEACHER_STEM" ${WEIGHTS:+--weights "$WEIGHTS"} "$@"
    [ -n "$WEIGHTS" ] || set -- --teacher "$TEACHER" "$@" ;;
soft-*) set -- --fkd-path "$SOFT_LABELS" "$@" ;;
*) set -- --labels "$LABELS" ${CLUSTER_WEIGHTS:+--cluster-weights} "$@" ;;
esac
[ "$LABELS" = hard ] || set -- ${TEMPERATURE:+-T "$TEMPERATURE"} "$@"
case $LABELS-$PROTOCOL in       # the crops and batches of rded are the protocol's
*-rded) BATCH=$BATCH_ASKED; set -- --input-size "$INPUT_SIZE" --flip "$FLIP" "$@" ;;
hard-*) set -- --input-size "$INPUT_SIZE" --min-scale-crops "$MIN_SCALE" --max-scale-crops 1 --flip "$FLIP" "$@" ;;
esac
if [ -n "$PROTOCOL" ]; then set -- --protocol "$PROTOCOL" "$@"; else set -- --cos "$@"; fi

$LAUNCH -m validate.train_FKD \
    ${DISTILLED:+--train-dir "$DISTILLED"} \
    --dataset "$DATASET" --data_dir "$DATA" ${PROMPTS:+--label_file_path "$PROMPTS"} \
    ${VALIDATION:+--validation "$VALIDATION"} ${VAL_LABELS:+--val_labels "$VAL_LABELS"} ${VAL:+--val-dir "$VAL"} \
    --model "$MODEL" --stem "$STEM" --epochs "$EPOCHS" \
    ${BATCH:+--batch-size "$BATCH" --gradient-accumulation-steps 1} \
    ${BF16:+--bf16} --workers "$WORKERS" --seed "$SEED" \
    --output-dir "$STUDENT" \
    "$@"

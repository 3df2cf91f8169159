#!/bin/sh
# Stage 3b: the teacher's soft labels for EPOCHS epochs of views of the images in DISTILLED (empty: of the real training set).
# Computed at 20 TFLOP/s, for ResNet-18 and IPC 10 / 50: 0.15 / 0.8 hours on ImageNet-1K, 2 / 11 minutes on Tiny-ImageNet, at
# most two minutes on CIFAR. On ImageNet-1K the labels take 6.1 / 30 GB; KEEP_TOPK=50 makes that a ninth, KEEP_EPOCHS=0.025 a
# fortieth.
set -eu
cd "$(dirname "$0")/.."
. scripts/settings.sh

if [ -n "$WEIGHTS" ]; then
    set -- --weights "$WEIGHTS" "$@"
else
    set -- --teacher "$TEACHER" "$@"
fi
# of the weights, or of a TEACHER that is a checkpoint file; a folder of train_teacher knows its own
set -- --teacher-arch "$TEACHER_ARCH" --stem "$TEACHER_STEM" "$@"
# with PROTOCOL=d4m the images of a student's batch share one mix, so the labels have the student's batches
case $PROTOCOL in d4m) LABEL_BATCH=${BATCH:-1024}; set -- --mix-per batch "$@" ;; esac
$LAUNCH -m matching.generate_soft_label \
    ${DISTILLED:+--data "$DISTILLED"} \
    --dataset "$DATASET" --data_dir "$DATA" ${PROMPTS:+--label_file_path "$PROMPTS"} \
    ${VALIDATION:+--validation "$VALIDATION"} \
    --epochs "$EPOCHS" --fkd-seed 42 \
    --input-size "$INPUT_SIZE" --min-scale-crops "$MIN_SCALE" --max-scale-crops 1 --flip "$FLIP" --mix-type cutmix \
    --use-fp16 ${KEEP_TOPK:+--keep-topk "$KEEP_TOPK"} ${TEMPERATURE:+-T "$TEMPERATURE"} --keep-epochs "$KEEP_EPOCHS" \
    --batch-size "$LABEL_BATCH" --workers "$WORKERS" \
    --fkd-path "$SOFT_LABELS" \
    "$@"

#!/bin/sh
# Stage 3a: a teacher trained on the real images. ImageNet-1K needs none: there torchvision's ResNet-18 is the teacher.
# Decoded, the images of Tiny-ImageNet take 1.2 GB of GPU memory, and 1.6 to 1.9 GB more when padded.
set -eu
cd "$(dirname "$0")/.."
. scripts/settings.sh

# shellcheck disable=SC2086  # a recipe is several flags
$LAUNCH -m matching.train_teacher \
    --dataset "$DATASET" --data_dir "$DATA" ${PROMPTS:+--label_file_path "$PROMPTS"} \
    ${VALIDATION:+--validation "$VALIDATION"} ${VAL_LABELS:+--val_labels "$VAL_LABELS"} \
    --arch "$TEACHER_ARCH" --stem "$TEACHER_STEM" --input-size "$INPUT_SIZE" --flip "$FLIP" \
    --batch-size "$TEACHER_BATCH" --epochs "$TEACHER_EPOCHS" --workers "$WORKERS" --seed "$SEED" \
    --output-dir "$TEACHER" \
    $TEACHER_RECIPE \
    "$@"

#!/bin/sh
# SRe2L's images, a comparator of D4M: optimised from noise under the teacher of matching/train_teacher.sh, or torchvision's
# (WEIGHTS=IMAGENET1K_V1). With METHOD=sre2l the later stages take them. SRe2L's own values for ImageNet-1K: 4,000 steps, rate
# 0.25, weight 0.01 (arXiv 2306.13092). Digits: 100 images in 1,000 steps (100,000 passes of the teacher), 20 minutes of a core.
set -eu
cd "$(dirname "$0")/.."
METHOD=sre2l
. scripts/settings.sh
if [ -n "$WEIGHTS" ]; then set -- --arch "$TEACHER_ARCH" --weights "$WEIGHTS" "$@"; else set -- --teacher "$TEACHER" "$@"; fi

$LAUNCH -m distillation.sre2l \
    --ipc "$IPC" --steps "$SRE2L_STEPS" --batch_size "$SRE2L_BATCH" \
    --min-scale-crops "$MIN_SCALE" --flip "$FLIP" --seed "$SEED" --save_init_image_path "$RUN/distilled" \
    "$@"

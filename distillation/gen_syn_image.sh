#!/bin/sh
# Stage 2: one image per prototype, or a baseline: METHOD=prototype, noise, random, herding, kcenter. Digits: 100 images in
# about 15 s on 2 CPU cores. Stable Diffusion at the paper's rate, 2.7 s and 6.1 GB per image on a V100 at batch 1 (D4M, CVPR
# 2024), IPC 10 / 50: CIFAR-10 4 / 22 minutes, CIFAR-100 0.75 / 3.8 hours, Tiny-ImageNet 1.5 / 7.5 hours, ImageNet-1K 7.5 / 37.5
# hours. `python -m misc.benchmark distillation` measures the rate of a GPU.
set -eu
cd "$(dirname "$0")/.."
. scripts/settings.sh

$LAUNCH -m distillation.gen_syn_image \
    --dataset "$DATASET" --data_dir "$DATA" ${PROMPTS:+--label_file_path "$PROMPTS"} \
    ${VALIDATION:+--validation "$VALIDATION"} \
    --diffusion_checkpoints_path "$CHECKPOINT" ${SIZE:+--size "$SIZE"} \
    --prototype_path "$PROTOTYPES" --ipc "$IPC" ${KM_EXPAND:+--km_expand "$KM_EXPAND"} \
    --method "$METHOD" --strength "$STRENGTH" --guidance_scale "$GUIDANCE" --num_inference_steps "$STEPS" \
    --negative_prompt "$NEGATIVE_PROMPT" --seed "$SEED" \
    ${IMAGE_SIZE:+--image_size "$IMAGE_SIZE"} --batch_size "$DENOISE_BATCH" --num_workers "$WORKERS" \
    --save_init_image_path "$RUN/distilled" \
    "$@"

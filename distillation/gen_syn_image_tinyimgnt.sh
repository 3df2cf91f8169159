#!/bin/sh
# Stage 2 on Tiny-ImageNet: one 512-pixel image per prototype, 35 of 50 steps at strength 0.7, guidance 8, saved at 64 pixels.
# Needs a GPU. D4M (CVPR 2024) reports, for ResNet-18 / 50 / 101, 46.2 / 51.8 / 51.0 % at IPC 50 and 51.4 / 54.8 / 55.3 % at
# IPC 100 (61.9 / 62.0 / 62.3 % on all real images).
# Several GPUs: accelerate launch -m distillation.gen_syn_image ...
# At the paper's rate, 2.7 s and 6.1 GB per image on a V100 at batch 1 (D4M, CVPR 2024): IPC 10 1.5 hours, IPC 50 7.5 hours.
# `python -m misc.benchmark distillation` measures this code's rate on your GPU.
set -eu
cd "$(dirname "$0")/.."

RUN=${RUN:-runs/tiny_imagenet}
IPC=${IPC:-50}
SEED=${SEED:-0}
STRENGTH=${STRENGTH:-0.7}      # share of the noise schedule: 35 of 50 steps
GUIDANCE=${GUIDANCE:-8}
IMAGE_SIZE=${IMAGE_SIZE:-64}   # pixels of the saved images
CHECKPOINT=${CHECKPOINT:-stable-diffusion-v1-5/stable-diffusion-v1-5}

${LAUNCH:-python} -m distillation.gen_syn_image \
    --batch_size 16 \
    --dataset tiny_imagenet \
    --diffusion_checkpoints_path "$CHECKPOINT" \
    --guidance_scale "$GUIDANCE" \
    --strength "$STRENGTH" \
    --image_size "$IMAGE_SIZE" \
    --ipc "$IPC" \
    --km_expand 1 \
    --prototype_path "$RUN/prototypes/tiny_imagenet-ipc$IPC-kmexpand1" \
    --seed "$SEED" \
    --save_init_image_path "$RUN/distilled"

#!/bin/sh
# Stage 2 on CIFAR-10: one 512-pixel image per prototype, 35 of 50 steps at strength 0.7, guidance 8, saved at 32 pixels.
# Needs a GPU. D4M (CVPR 2024) reports 56.2 % at IPC 10 and 72.8 % at IPC 50 with a ConvNet of width 128 (84.8 % on all real
# images).
# Several GPUs: accelerate launch -m distillation.gen_syn_image ...
# At the paper's rate, 2.7 s and 6.1 GB per image on a V100 at batch 1 (D4M, CVPR 2024): IPC 10 4 minutes, IPC 50 22 minutes.
# `python -m misc.benchmark distillation` measures this code's rate on your GPU.
set -eu
cd "$(dirname "$0")/.."

RUN=${RUN:-runs/cifar10}
IPC=${IPC:-10}
SEED=${SEED:-0}
STRENGTH=${STRENGTH:-0.7}      # share of the noise schedule: 35 of 50 steps
GUIDANCE=${GUIDANCE:-8}
IMAGE_SIZE=${IMAGE_SIZE:-32}   # pixels of the saved images
CHECKPOINT=${CHECKPOINT:-stable-diffusion-v1-5/stable-diffusion-v1-5}

${LAUNCH:-python} -m distillation.gen_syn_image \
    --batch_size 16 \
    --dataset cifar10 \
    --diffusion_checkpoints_path "$CHECKPOINT" \
    --guidance_scale "$GUIDANCE" \
    --strength "$STRENGTH" \
    --image_size "$IMAGE_SIZE" \
    --ipc "$IPC" \
    --km_expand 1 \
    --prototype_path "$RUN/prototypes/cifar10-ipc$IPC-kmexpand1" \
    --seed "$SEED" \
    --save_init_image_path "$RUN/distilled"

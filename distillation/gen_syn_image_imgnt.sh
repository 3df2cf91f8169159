#!/bin/sh
# Stage 2 in the paper's setting: 35 of 50 steps at strength 0.7, guidance 8, saved at 224 pixels.
# At the paper's rate, 2.7 s and 6.1 GB per image on a V100 at batch 1 (D4M, CVPR 2024): IPC 10 7.5 hours, IPC 50 37.5 hours.
# `python -m misc.benchmark distillation` measures this code's rate on your GPU.
set -eu
cd "$(dirname "$0")/.."

RUN=${RUN:-runs/imagenet}
IPC=${IPC:-10}
CHECKPOINT=${CHECKPOINT:-stable-diffusion-v1-5/stable-diffusion-v1-5}

${LAUNCH:-python} -m distillation.gen_syn_image \
    --batch_size 16 \
    --dataset imagenet \
    --diffusion_checkpoints_path "$CHECKPOINT" \
    --guidance_scale 8 \
    --strength 0.7 \
    --ipc "$IPC" \
    --km_expand 1 \
    --prototype_path "$RUN/prototypes/imagenet-ipc$IPC-kmexpand1" \
    --save_init_image_path "$RUN/distilled"

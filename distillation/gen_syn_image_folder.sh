#!/bin/sh
# Stage 2 on your own images: one 512-pixel image per prototype, 35 of 50 steps at strength 0.7, guidance 8, saved at 224
# pixels. Needs a GPU. The paper has no figure for your data; for other domains than photographs sweep STRENGTH first.
# Several GPUs: accelerate launch -m distillation.gen_syn_image ...
# The paper states 2.7 s and 6.1 GB per image on a V100 at batch 1 (D4M, CVPR 2024);
# `python -m misc.benchmark distillation` measures this code's rate on your GPU.
set -eu
cd "$(dirname "$0")/.."

RUN=${RUN:-runs/folder}
IPC=${IPC:-10}
SEED=${SEED:-0}
STRENGTH=${STRENGTH:-0.7}      # share of the noise schedule: 35 of 50 steps
GUIDANCE=${GUIDANCE:-8}
IMAGE_SIZE=${IMAGE_SIZE:-224}   # pixels of the saved images
CHECKPOINT=${CHECKPOINT:-stable-diffusion-v1-5/stable-diffusion-v1-5}

${LAUNCH:-python} -m distillation.gen_syn_image \
    --batch_size 16 \
    --dataset folder \
    --diffusion_checkpoints_path "$CHECKPOINT" \
    --guidance_scale "$GUIDANCE" \
    --strength "$STRENGTH" \
    --image_size "$IMAGE_SIZE" \
    --ipc "$IPC" \
    --km_expand 1 \
    --prototype_path "$RUN/prototypes/folder-ipc$IPC-kmexpand1" \
    --seed "$SEED" \
    --save_init_image_path "$RUN/distilled"

#!/bin/sh
# Trains the checkpoint shipped in distillation/checkpoints/digits-ldm. Its README.md states the seconds and losses of the
# shipped run. Retrain into another folder with OUTPUT_DIR=runs/digits-ldm.
set -eu
cd "$(dirname "$0")/.."

OUTPUT_DIR=${OUTPUT_DIR:-distillation/checkpoints/digits-ldm}
VAE_STEPS=${VAE_STEPS:-800}    # reconstructs digits within 1 % of the pixel range
UNET_STEPS=${UNET_STEPS:-3000} # 142 passes over the training split
SEED=${SEED:-0}

python -m distillation.train_ldm \
    --dataset digits \
    --output_dir "$OUTPUT_DIR" \
    --vae_steps "$VAE_STEPS" \
    --unet_steps "$UNET_STEPS" \
    --seed "$SEED"

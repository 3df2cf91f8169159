#!/bin/sh
# Trains once more what is shipped in distillation/checkpoints/digits-ldm, whose README.md states seconds and losses.
set -eu
cd "$(dirname "$0")/.."

OUTPUT_DIR=${OUTPUT_DIR:-runs/digits-ldm}
VAE_STEPS=${VAE_STEPS:-800}    # reconstructs digits within 1 % of the pixel range
UNET_STEPS=${UNET_STEPS:-3000} # 142 passes over the training split
SEED=${SEED:-0}

python -m distillation.train_ldm \
    --dataset digits \
    --output_dir "$OUTPUT_DIR" \
    --vae_steps "$VAE_STEPS" \
    --unet_steps "$UNET_STEPS" \
    --seed "$SEED"

#!/bin/sh
# A latent diffusion model in Stable Diffusion's format: from scratch (INIT empty), or INIT fitted to the images. Other stages
# take it by CHECKPOINT. Digits: what is shipped in distillation/checkpoints/digits-ldm, whose README.md has seconds and losses.
# Fitting Stable Diffusion v1.5 needs (computed) a GPU of 24 GB, of 8 GB with LORA_RANK=16; 131 KB of host memory per image; on
# disk 2.5 GB for the result and 13.8 GB for the resume point (LoRA: 0.05 GB).
set -eu
cd "$(dirname "$0")/.."
. scripts/settings.sh

if [ -n "$INIT" ]; then
    set -- --init "$INIT" "$@"
else
    # shellcheck disable=SC2086  # channels are several words
    set -- --vae_channels $VAE_CHANNELS --vae_steps "$VAE_STEPS" --unet_channels $UNET_CHANNELS "$@"
fi
# shellcheck disable=SC2086  # a recipe is several flags
$LAUNCH -m distillation.train_ldm \
    --dataset "$DATASET" --data_dir "$DATA" ${PROMPTS:+--label_file_path "$PROMPTS"} \
    ${VALIDATION:+--validation "$VALIDATION"} \
    --unet_steps "$UNET_STEPS" --batch_size "$LDM_BATCH" --num_workers "$WORKERS" --seed "$SEED" \
    --output_dir "$LDM" ${LORA_RANK:+--lora_rank "$LORA_RANK"} \
    $LDM_RECIPE \
    "$@"

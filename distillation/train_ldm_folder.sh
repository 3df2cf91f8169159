#!/bin/sh
# Fits Stable Diffusion v1.5 to the images of $DATA/train/<class>/* (prompts: the folders' names, or LABELS, one line a class).
# Later stages take the result as --diffusion_checkpoints_path.
# Memory, computed from the numbers of parameters, not measured: 0.8 GB for the frozen parts, and in float32 weights, gradients,
# AdamW's moments and the average: 17.2 GB for the whole UNet, 3.5 GB with LORA_RANK=16. Activations come on top; recomputing
# them, as below, keeps them small. So expect the whole UNet to need a GPU of 24 GB, LoRA one of 8 GB.
# On the host 131 KB of latents per image. On disk 2.5 GB of result and 13.8 GB of resume point (LoRA: 0.05 GB).
set -eu
cd "$(dirname "$0")/.."

DATA=${DATA:-data/own}
LABELS=${LABELS:-}             # a file of prompts in class order; names like "n01440764" say nothing to the text encoder
OUTPUT_DIR=${OUTPUT_DIR:-runs/own-ldm}
CHECKPOINT=${CHECKPOINT:-stable-diffusion-v1-5/stable-diffusion-v1-5}
STEPS=${STEPS:-4000}           # of 16 images; raise it with the number of images
LORA_RANK=${LORA_RANK:-}       # empty: the whole UNet
SEED=${SEED:-0}

# 16 images a step in 8 parts of 2; a resume point every half hour, since it is large
python -m distillation.train_ldm \
    --init "$CHECKPOINT" \
    --dataset folder \
    --data_dir "$DATA" \
    ${LABELS:+--label_file_path "$LABELS"} \
    ${LORA_RANK:+--lora_rank "$LORA_RANK"} \
    --unet_steps "$STEPS" \
    --batch_size 16 \
    --gradient_accumulation_steps 8 \
    --gradient_checkpointing \
    --num_workers 8 \
    --save_seconds 1800 \
    --seed "$SEED" \
    --output_dir "$OUTPUT_DIR"

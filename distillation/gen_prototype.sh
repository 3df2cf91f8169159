#!/bin/sh
# Stage 1: IPC prototypes per class, the k-means centroids of its latents. Digits: about 10 s on 2 CPU cores.
# Host memory holds one class at a time, 64 KB a latent of 512 pixels (ImageNet: 1,300 latents, 85 MB).
#   IPC=50 DATASET=cifar10 sh distillation/gen_prototype.sh
set -eu
cd "$(dirname "$0")/.."
. scripts/settings.sh

$LAUNCH -m distillation.gen_prototype \
    --dataset "$DATASET" --data_dir "$DATA" ${PROMPTS:+--label_file_path "$PROMPTS"} \
    ${VALIDATION:+--validation "$VALIDATION"} \
    --diffusion_checkpoints_path "$CHECKPOINT" \
    ${SIZE:+--size "$SIZE"} --batch_size "$ENCODE_BATCH" --num_workers "$WORKERS" \
    --ipc "$IPC" --kmeans "$KMEANS" ${KM_EXPAND:+--km_expand "$KM_EXPAND"} --seed "$SEED" \
    --save_prototype_path "$RUN/prototypes" \
    "$@"

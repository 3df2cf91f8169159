#!/bin/sh
# MTT's images, a comparator of D4M: optimised so that a ConvNet trained on them moves as experts do on the real images. With
# METHOD=mtt the later stages take them. MTT's own values: 100 experts of 50 epochs, 5,000 iterations (arXiv 2203.11932). Their
# memory grows with the student's steps x its batch. It takes one process.
set -eu
cd "$(dirname "$0")/.."
METHOD=mtt
. scripts/settings.sh

$LAUNCH -m distillation.mtt \
    --dataset "$DATASET" --data_dir "$DATA" ${PROMPTS:+--label_file_path "$PROMPTS"} \
    ${VALIDATION:+--validation "$VALIDATION"} \
    --ipc "$IPC" --size "$INPUT_SIZE" --experts "$EXPERTS" --expert_epochs "$EXPERT_EPOCHS" --iterations "$MTT_ITERATIONS" \
    --seed "$SEED" --num_workers "$WORKERS" --experts_path "$RUN/experts" --save_init_image_path "$RUN/distilled" \
    "$@"

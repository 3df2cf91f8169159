#!/bin/sh
# Stage 3 in the paper's setting: torchvision's ResNet-18 (V1 weights) labels 300 epochs of views at 224 pixels.
# The labels of IPC 10 take 5.7 GB. Several GPUs: accelerate launch -m matching.generate_soft_label ...
set -eu
cd "$(dirname "$0")/.."

RUN=${RUN:-runs/imagenet}
IPC=${IPC:-10}
DATA=${DATA:-$RUN/distilled/imagenet_ipc${IPC}_${IPC}_s0.7_g8.0_kmexpand1}

python -m matching.generate_soft_label \
    -a resnet18 \
    --weights IMAGENET1K_V1 \
    -b 1024 \
    -j 8 \
    --epochs 300 \
    --fkd-seed 42 \
    --input-size 224 \
    --min-scale-crops 0.08 \
    --max-scale-crops 1 \
    --use-fp16 \
    --mode fkd_save \
    --mix-type cutmix \
    --data "$DATA" \
    --fkd-path "$RUN/soft-labels/imagenet_ipc${IPC}_label18"

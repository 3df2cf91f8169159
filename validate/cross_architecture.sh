#!/bin/sh
# Students of many architectures from one distilled set and one teacher's labels, as in the paper's table 5. D4M (CVPR 2024) on
# ImageNet-1K at IPC 50, teacher ResNet-18: ResNet-18 55.2, MobileNetV2 47.9, EfficientNet-B0 55.4, Swin-T 58.1, ViT-B 45.5 %.
set -eu
cd "$(dirname "$0")/.."
PROTOCOL=${PROTOCOL:-d4m}
. scripts/settings.sh

unset STUDENT        # settings.sh names a folder for each
for SEED in $SEEDS; do
    for MODEL in ${STUDENTS:-resnet18 resnet50 mobilenet_v2 efficientnet_b0 swin_t vit_b_16}; do
        export PROTOCOL SEED MODEL
        case $MODEL in *resne[tx]*) stem=$STEM ;; *) stem=imagenet ;; esac     # ResNets alone have another
        STEM=$stem sh validate/train_FKD.sh "$@"
    done
done

#!/bin/sh
# Students of many architectures from one distilled set and one teacher's labels, the layout of the paper's table 5. Defaults:
# digits, from gen_syn_image_digits.sh and matching_digits.sh. D4M (CVPR 2024) on ImageNet-1K at IPC 50, teacher ResNet-18:
# ResNet-18 55.2, MobileNetV2 47.9, EfficientNet-B0 55.4, Swin-T 58.1, ViT-B 45.5 %. `sh misc/studies/matching.sh` makes the
# table of misc/matching.md.
set -eu
cd "$(dirname "$0")/.."

RUN=${RUN:-runs/digits}
DATASET=${DATASET:-digits}
DATA_DIR=${DATA_DIR:-data}
DATA=${DATA:-$RUN/distilled/digits_ipc10_10_s0.3_g2.0_kmexpand1}
LABELS=${LABELS:-$RUN/soft-labels/distilled}
STUDENTS=${STUDENTS:-resnet18 resnet50 mobilenet_v2 efficientnet_b0 swin_t vit_b_16}
EPOCHS=${EPOCHS:-60}
BATCH=${BATCH:-50}
SEEDS=${SEEDS:-0}

for SEED in $SEEDS; do
    for MODEL in $STUDENTS; do
        python -m validate.train_FKD \
            --protocol d4m \
            --train-dir "$DATA" \
            --fkd-path "$LABELS" \
            --dataset "$DATASET" \
            --data_dir "$DATA_DIR" \
            --model "$MODEL" \
            --batch-size "$BATCH" \
            --gradient-accumulation-steps 1 \
            --epochs "$EPOCHS" \
            --seed "$SEED" \
            --output-dir "$RUN/students/cross-$MODEL-seed$SEED"
    done
done

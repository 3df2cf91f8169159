#!/bin/sh
# Stage 4 in the paper's setting: students on ImageNet-1K, tested on $VAL/<wnid>/*. D4M's table (CVPR 2024), top-1 %, R18/R50/R101:
# IPC 10 27.9/33.5/34.2, IPC 50 55.2/62.4/63.4.
set -eu
cd "$(dirname "$0")/.."

RUN=${RUN:-runs/imagenet}
IPC=${IPC:-10}
VAL=${VAL:-data/imagenet/val}
MODEL=${MODEL:-resnet18}

python -m validate.train_FKD \
    --batch-size 1024 \
    --model "$MODEL" \
    --cos \
    -j 8 --gradient-accumulation-steps 2 \
    -T 20 \
    --mix-type cutmix \
    --output-dir "$RUN/students/imagenet_ipc${IPC}_label18_$MODEL" \
    --train-dir "$RUN/distilled/imagenet_ipc${IPC}_${IPC}_s0.7_g8.0_kmexpand1" \
    --val-dir "$VAL" \
    --fkd-path "$RUN/soft-labels/imagenet_ipc${IPC}_label18"

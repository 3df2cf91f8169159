#!/bin/sh
# Stage 3a on CIFAR-10: a ResNet-18 for small images on the 50,000 real training images, in the recipe that is common for it:
# random crops after padding, flips, Cutout, SGD with Nesterov momentum, one cycle of the learning rate, smoothed labels.
# Not run here as it stands. DeVries & Taylor 2017 (arXiv 1708.04552, table 1) report 96.0 % for a ResNet-18 with crops, flips
# and a Cutout of 16 pixels after 200 epochs of step decay; 60 epochs of one cycle are expected to stay below that.
# Needs a GPU (bfloat16); reads $DATA_DIR as torchvision stores it, 170 MB to download where it is missing.
set -eu
cd "$(dirname "$0")/.."

RUN=${RUN:-runs/cifar10}
DATA_DIR=${DATA_DIR:-data/cifar10}
EPOCHS=${EPOCHS:-60}
SEED=${SEED:-0}

# 0.4 at batch 512 is 0.1 at 128
${LAUNCH:-python} -m matching.train_teacher \
    --dataset cifar10 \
    --data_dir "$DATA_DIR" \
    --arch resnet18 \
    --stem cifar \
    --input-size 32 \
    --crop pad \
    --cutout 16 \
    --optimizer sgd \
    --batch-size 512 \
    -lr 0.4 \
    --weight-decay 5e-4 \
    --lr-schedule triangle \
    --label-smoothing 0.1 \
    --bf16 \
    --epochs "$EPOCHS" \
    --seed "$SEED" \
    --output-dir "$RUN/teacher"

#!/bin/sh
# Stage 3a on Tiny-ImageNet: a ResNet-18 for small images on the 100,000 real training images of 200 classes, at 64 pixels.
# Not run here as it stands. D4M's table (CVPR 2024) has 61.9 % for a ResNet-18 trained on the full set.
# Needs a GPU (bfloat16), and $DATA_DIR as it is distributed: train/<wnid>/images/*.JPEG, val/images/*.JPEG and
# val/val_annotations.txt, or val/<wnid>/*.JPEG. Several GPUs: LAUNCH="accelerate launch" sh matching/train_teacher_tinyimgnt.sh.
# Decoded, the images take 1.2 GB of its memory, and 1.6 GB more when padded.
set -eu
cd "$(dirname "$0")/.."

RUN=${RUN:-runs/tiny_imagenet}
DATA_DIR=${DATA_DIR:-data/tiny-imagenet-200}
EPOCHS=${EPOCHS:-60}
SEED=${SEED:-0}

# 0.2 at batch 256 is 0.1 at 128; padding grows with the image: 8 of 64 pixels, as 4 of 32
${LAUNCH:-python} -m matching.train_teacher \
    --dataset tiny_imagenet \
    --data_dir "$DATA_DIR" \
    --arch resnet18 \
    --stem cifar \
    --input-size 64 \
    --crop pad \
    --pad 8 \
    --cutout 16 \
    --optimizer sgd \
    --batch-size 256 \
    -lr 0.2 \
    --weight-decay 5e-4 \
    --lr-schedule triangle \
    --label-smoothing 0.1 \
    --bf16 \
    --epochs "$EPOCHS" \
    --seed "$SEED" \
    --output-dir "$RUN/teacher"

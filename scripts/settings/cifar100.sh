# shellcheck shell=sh disable=SC2034
# CIFAR-100 (50,000 training images of 32 pixels) with Stable Diffusion v1.5. Needs a GPU. Not run here as it stands. 169 MB are
# downloaded where DATA is missing; before several processes start, do that with one.
RUN=${RUN:-runs/cifar100}
DATA=${DATA:-data/cifar100}              # as torchvision stores it
CHECKPOINT=${CHECKPOINT:-stable-diffusion-v1-5/stable-diffusion-v1-5}

# 1 prototypes, encoded at the 512 pixels that Stable Diffusion v1.5 was trained on
IPC=${IPC:-10} SIZE=${SIZE:-512} KMEANS=${KMEANS:-minibatch} ENCODE_BATCH=${ENCODE_BATCH:-32}
# 2 images, as in the paper: 35 of 50 steps at strength 0.7, guidance 8, saved at the size of CIFAR
STRENGTH=${STRENGTH:-0.7} GUIDANCE=${GUIDANCE:-8} STEPS=${STEPS:-50} IMAGE_SIZE=${IMAGE_SIZE:-32}
# 3 teacher (ResNet-18 for small images, 60 epochs; rate 0.4 at batch 512 is 0.1 at 128) and soft labels.
# DeVries & Taylor 2017 (arXiv 1708.04552, table 1): 78.0 % for crops, flips and this Cutout after 200 epochs
INPUT_SIZE=${INPUT_SIZE:-32} MIN_SCALE=${MIN_SCALE:-0.08} FLIP=${FLIP:-0.5} TEACHER_BATCH=${TEACHER_BATCH:-512}
TEACHER_ARCH=${TEACHER_ARCH:-resnet18} TEACHER_STEM=${TEACHER_STEM:-cifar} TEACHER_EPOCHS=${TEACHER_EPOCHS:-60}
TEACHER_RECIPE=${TEACHER_RECIPE:---crop pad --cutout 8 --optimizer sgd -lr 0.4 --weight-decay 5e-4 --lr-schedule triangle \
--label-smoothing 0.1 --bf16}
# 4 students. D4M reports for this ConvNet 45.0 % at IPC 10, 48.8 % at IPC 50 (56.2 % on all real images).
# STEM=cifar is for ResNets. The protocol's batch of 1,024 would be too few steps for so few images
MODEL=${MODEL:-convnet_d3_w128} STEM=${STEM:-imagenet} EPOCHS=${EPOCHS:-300} BATCH=${BATCH:-100}
PROTOCOL=${PROTOCOL-d4m} BF16=${BF16-1}
INIT=${INIT-$CHECKPOINT}                 # of train_ldm.sh: Stable Diffusion fitted to these images

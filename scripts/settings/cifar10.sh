# shellcheck shell=sh disable=SC2034
# CIFAR-10 (50,000 training images of 32 pixels) with Stable Diffusion v1.5. Needs a GPU. Not run here as it stands. 170 MB are
# downloaded where DATA is missing; before several processes start, do that with one.
RUN=${RUN:-runs/cifar10}
DATA=${DATA:-data/cifar10}               # as torchvision stores it
CHECKPOINT=${CHECKPOINT:-stable-diffusion-v1-5/stable-diffusion-v1-5}

# 1 prototypes, encoded at the 512 pixels that Stable Diffusion v1.5 was trained on
IPC=${IPC:-10} SIZE=${SIZE:-512} KMEANS=${KMEANS:-minibatch} ENCODE_BATCH=${ENCODE_BATCH:-32}
# 2 images, as in the paper: 35 of 50 steps at strength 0.7, guidance 8, saved at the size of CIFAR
STRENGTH=${STRENGTH:-0.7} GUIDANCE=${GUIDANCE:-8} STEPS=${STEPS:-50} IMAGE_SIZE=${IMAGE_SIZE:-32}
# 3 teacher (ResNet-18 for small images, 60 epochs; rate 0.4 at batch 512 is 0.1 at 128) and soft labels.
# DeVries & Taylor 2017 (arXiv 1708.04552, table 1): 96.0 % for crops, flips and this Cutout after 200 epochs
INPUT_SIZE=${INPUT_SIZE:-32} MIN_SCALE=${MIN_SCALE:-0.08} FLIP=${FLIP:-0.5} TEACHER_BATCH=${TEACHER_BATCH:-512}
TEACHER_ARCH=${TEACHER_ARCH:-resnet18} TEACHER_STEM=${TEACHER_STEM:-cifar} TEACHER_EPOCHS=${TEACHER_EPOCHS:-60}
TEACHER_RECIPE=${TEACHER_RECIPE:---crop pad --cutout 16 --optimizer sgd -lr 0.4 --weight-decay 5e-4 --lr-schedule triangle \
--label-smoothing 0.1 --bf16}
# 4 students. D4M reports for this ConvNet 56.2 % at IPC 10, 72.8 % at IPC 50 (84.8 % on all real images).
# STEM=cifar is for ResNets. The protocol's batch of 1,024 would be too few steps for so few images
MODEL=${MODEL:-convnet_d3_w128} STEM=${STEM:-imagenet} EPOCHS=${EPOCHS:-300} BATCH=${BATCH:-50}
PROTOCOL=${PROTOCOL-d4m} BF16=${BF16-1}
# diffusion model from scratch: 20 million images, 40 PFLOP for the UNet (computed); misc/studies/cifar10.sh has a small one
INIT=${INIT-} VAE_STEPS=${VAE_STEPS:-6000} VAE_CHANNELS=${VAE_CHANNELS:-64 128 128} UNET_CHANNELS=${UNET_CHANNELS:-128 256}
[ -n "$INIT" ] || UNET_STEPS=${UNET_STEPS:-40000} LDM_BATCH=${LDM_BATCH:-512} \
    LDM_RECIPE=${LDM_RECIPE---prediction_type v_prediction --save_seconds 300}
